"""Number of operations: on a graphics card each costs host time, whatever its size."""

from pathlib import Path

import pytest
import tiny
import torch
from tiny import DEVICE, bfloat16_works, load_tiny, make_batch, make_roles, make_tiny_model

from lowrank_rlhf.models.layers.merging import merged
from lowrank_rlhf.models.roles import Role, Roles

LAYER_MOST = {"float32": 94, "bfloat16": 98}
"""Operations of a decoder layer, forward and backward; its two norms are 22 of them on a CPU, 26 in bfloat16."""
REST_MOST = {"float32": 52, "bfloat16": 60}
"""Operations of embedding, positions, last norm, log-probabilities and one tensor of all adapters. One of the
log-probabilities replaces a wait for the device by indices of response tokens."""
each_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def roles_of(folder: Path, dtype: str, monkeypatch: pytest.MonkeyPatch, layers: int = 2) -> Roles:
    if dtype == "bfloat16" and not bfloat16_works():
        pytest.skip("this CPU crashes on bfloat16")
    monkeypatch.setitem(tiny.COMMON, "num_hidden_layers", layers)
    return make_roles(load_tiny(make_tiny_model(folder / str(layers)), "nf4", compute_dtype=dtype))


@each_dtype
@pytest.mark.parametrize("names", [["o_proj"], ["gate_proj", "up_proj"], ["q_proj", "k_proj", "v_proj"]])
def test_one_product_for_layers_that_read_the_same(tmp_path, dtype, monkeypatch, names) -> None:
    """Four operations and six for one layer; each further one adds one forward, and two backward."""
    from benchmarks.operations import OperationCount

    roles = roles_of(tmp_path, dtype, monkeypatch)
    x = torch.randn(3, 5, 64, dtype=roles.base.compute_dtype, device=DEVICE, requires_grad=True)
    block = roles.decoder.layers[0]
    layers = [getattr(block.self_attn, name, None) or getattr(block.mlp, name) for name in names]
    with roles.acting_as(Role.POLICY, train=True):
        roles.slots.fill()
        with OperationCount() as forward:
            outputs = [layer(x) for layer in layers]
        gradients, inputs = [torch.ones_like(out) for out in outputs], [x, *layers[0].forward.__self__.joint.slot[1]]
        with OperationCount() as backward:
            torch.autograd.grad(outputs, inputs, gradients)
    assert forward.by_name == {"aten::mm": 2, "bitsandbytes::dequantize_4bit": 1, "aten::addmm_": len(layers)}
    joined = {"aten::cat": 2} if len(layers) > 1 else {}
    assert backward.by_name == {
        "aten::mm": 2, "aten::addmm": 2 * len(layers), "bitsandbytes::dequantize_4bit": 1, "aten::addmm_": 1, **joined,
    }  # fmt: skip


@each_dtype
def test_a_pass_has_no_more_operations_than_before(tmp_path, dtype, monkeypatch) -> None:
    """SmolLM2-135M has 30 layers: raise these numbers for a reason only."""
    from benchmarks.operations import operations_per_pass

    rows = make_batch().ids.tolist()
    two, four = (operations_per_pass(roles_of(tmp_path, dtype, monkeypatch, n), rows) for n in (2, 4))
    layer = (four - two) // 2
    assert layer <= LAYER_MOST[dtype]
    assert two - 2 * layer <= REST_MOST[dtype]


@each_dtype
def test_a_merge_is_one_operation_a_layer_and_one_a_product(tmp_path, dtype, monkeypatch) -> None:
    from benchmarks.operations import OperationCount

    roles = roles_of(tmp_path, dtype, monkeypatch)
    with OperationCount() as operations, merged(roles, Role.POLICY):
        pass
    assert operations.by_name.total() <= 14 + 8 + 1 + (dtype != "float32")


def test_a_switch_is_no_operation(tmp_path, monkeypatch) -> None:
    from benchmarks.operations import OperationCount

    roles = roles_of(tmp_path, "float32", monkeypatch)
    with OperationCount() as operations:
        for role in Role:
            for train in (False, True):
                with roles.acting_as(role, train=train):
                    pass
    assert operations.by_name == {}
