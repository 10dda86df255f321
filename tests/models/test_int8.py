"""8-bit weights with full-precision products: numbers by hand, and the faults of bitsandbytes' own forward."""

import bitsandbytes as bnb
import pytest
import torch
from tiny import DEVICE, LORA, QUANTISED, load_tiny, make_batch
from torch import nn
from transformers import AutoModelForCausalLM

from lowrank_rlhf.models.layers.int8 import Int8Linear, compute_at_full_precision
from lowrank_rlhf.models.layers.merging import merged
from lowrank_rlhf.models.roles import Role, Roles


def quantised(weight: list[list[float]], bias: list[float] | None = None) -> Int8Linear:
    plain = torch.tensor(weight)
    layer = bnb.nn.Linear8bitLt(plain.shape[1], plain.shape[0], bias=bias is not None, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(plain, requires_grad=False).to("cpu")
    if bias is not None:
        layer.bias = nn.Parameter(torch.tensor(bias), requires_grad=False)
    model = nn.Sequential(layer)
    compute_at_full_precision(model)
    assert isinstance(model[0], Int8Linear)
    return model[0]


def test_numbers_by_hand() -> None:
    layer = quantised([[127.0, -63.6, 0.4], [0.0, 2.0, 1.0]], bias=[10.0, -1.0])
    assert layer.weight.tolist() == [[127, -64, 0], [0, 127, 64]]  # 63.6 and 63.5, to the next even
    torch.testing.assert_close(layer.scale, torch.tensor([1.0, 2 / 127]))
    torch.testing.assert_close(layer.dequantised(), torch.tensor([[127.0, -64.0, 0.0], [0.0, 2.0, 128 / 127]]))
    x = torch.tensor([[[1.0, 0.5, 3.0]]], requires_grad=True)
    out = layer(x)
    torch.testing.assert_close(out, torch.tensor([[[105.0, 3 + 384 / 127 - 3]]]))
    (out * torch.tensor([1.0, 10.0])).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[[127.0, -64 + 20.0, 1280 / 127]]]))


def test_the_backward_pass_keeps_no_dequantised_copy() -> None:
    layer = quantised(torch.randn(32, 16).tolist())
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append((tensor.dtype, tuple(tensor.shape)))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(torch.randn(4, 16, requires_grad=True))
    assert kept == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_input_decides_the_number_format(dtype) -> None:
    layer = quantised([[1.0, 2.0]])
    x = torch.tensor([[3.0, 4.0]], dtype=dtype, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.dtype == dtype
    assert layer(x).dtype == dtype
    torch.testing.assert_close(x.grad.float(), layer.dequantised(), rtol=1e-2, atol=0)


def test_the_decoder_is_in_8_bits_and_the_vocabulary_is_not(tiny_base) -> None:
    model = tiny_base("int8", architecture="qwen2").model
    decoder = [module for module in model.get_decoder().layers.modules() if isinstance(module, nn.Linear)]
    assert len(decoder) == 14
    assert {(type(module), module.weight.dtype) for module in decoder} == {(Int8Linear, torch.int8)}
    assert sum(module.bias is not None for module in decoder) == 6  # Qwen2's queries, keys and values
    assert model.get_output_embeddings().weight.dtype == torch.float32


def test_merged_weights_answer_as_the_adapter_does(tiny_base) -> None:
    roles, batch = Roles(tiny_base("int8"), LORA), make_batch()
    inputs = {"input_ids": batch.ids, "attention_mask": batch.attention.long()}
    with torch.no_grad():
        for parameter in roles.parameters(Role.POLICY):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    with roles.acting_as(Role.POLICY):
        expected = roles.base.model(**inputs).logits[batch.attention]
    with merged(roles, Role.POLICY), torch.no_grad():
        assert all(joint.merged is not None for joint in roles.slots.joints)
        torch.testing.assert_close(roles.base.model(**inputs).logits[batch.attention], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(DEVICE != "cpu", reason="about bitsandbytes on a CPU; on a GPU it rounds when it trains, too")
def test_bitsandbytes_own_forward_depends_on_the_mode_and_on_the_batch(tiny_folder) -> None:
    """Reason for decision 0012. If this fails, bitsandbytes has changed and int8.py may be unnecessary."""
    ids = torch.arange(3, 27, device=DEVICE).reshape(2, 12)
    theirs = AutoModelForCausalLM.from_pretrained(
        tiny_folder(), dtype=torch.float32, quantization_config=QUANTISED["int8"], device_map={"": DEVICE}
    )
    ours = load_tiny(tiny_folder(), "int8").model
    with torch.no_grad():
        trained, evaluated = (theirs.train(mode)(input_ids=ids).logits for mode in (True, False))
        alone = theirs(input_ids=ids[:1]).logits
        torch.testing.assert_close(ours.train()(input_ids=ids).logits, trained, rtol=1e-4, atol=1e-4)
        assert torch.equal(ours.eval()(input_ids=ids).logits, ours.train()(input_ids=ids).logits)
    assert (trained - evaluated).abs().max() > 0.05
    assert (alone - evaluated[:1]).abs().max() > 0.01
