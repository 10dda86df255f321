"""The layers with a slot against PEFT's own layers, and a switch of role that touches no module."""

import weakref

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from tiny import bfloat16_works, gradients, load_tiny, make_batch, make_roles, randomise, role_loss

from lowrank_rlhf.models.layers.weights import dequantised
from lowrank_rlhf.models.roles import Role, Roles


def with_pefts_layers(roles: Roles, role: Role) -> Roles:
    for layer in roles.slots.layers:
        del layer.layer.forward
    roles.peft.set_adapter(role.value, inference_mode=True)
    return roles


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8", "gguf"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])  # qwen2 has biases, phi3 packed projections
def test_gradients_are_those_of_pefts_layers(tiny_base, quantization, architecture) -> None:
    roles, batch = make_roles(tiny_base(quantization, architecture=architecture)), make_batch()
    ours = gradients(roles, Role.POLICY, batch)
    for name, gradient in gradients(with_pefts_layers(roles, Role.POLICY), Role.POLICY, batch).items():
        torch.testing.assert_close(ours[name], gradient, rtol=2e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_weights_changed_inside_a_block_count_in_the_next_forward(tiny_folder, checkpointing) -> None:
    """In bfloat16 too, where the slots have rounded copies: TRL's optimizers step inside a block."""
    if not bfloat16_works():
        pytest.skip("this CPU crashes on bfloat16")
    roles = make_roles(load_tiny(tiny_folder(), "nf4", checkpointing, compute_dtype="bfloat16"))
    batch, found = make_batch(), []
    with roles.acting_as(Role.POLICY, train=True):
        for _ in range(2):
            roles.backward(role_loss(roles, Role.POLICY, batch))
            found.append({name: weight.grad for name, weight in roles.named_parameters(Role.POLICY).items()})
            with torch.no_grad():
                for weight in roles.parameters(Role.POLICY):
                    weight.grad = None
                    weight.mul_(1.5 if len(found) == 1 else 1)
    expected = gradients(roles, Role.POLICY, batch)
    assert {gradient.dtype for gradient in expected.values()} == {torch.float32}
    assert all(torch.equal(found[1][name], gradient) for name, gradient in expected.items())
    assert not any(torch.equal(found[0][name], gradient) for name, gradient in expected.items())


def test_checkpointing_keeps_no_input_of_a_layer(tiny_base) -> None:
    """Between forward and backward only the inputs of decoder layers are stored; the rest is recomputed."""
    roles, inputs = make_roles(tiny_base("nf4", True)), []
    with roles.acting_as(Role.POLICY, train=True):
        for layer in roles.decoder.layers:
            layer.mlp.down_proj.register_forward_pre_hook(lambda _, given: inputs.append(weakref.ref(given[0])))
        logprobs = roles.logprobs(make_batch(), 0.8).logprobs
        assert [found() for found in inputs] == [None, None]
        roles.backward(logprobs.sum())
    assert len(inputs) == 4


def test_a_switch_touches_no_module(tiny_base) -> None:
    roles = make_roles(tiny_base("nf4"))
    before = {name: id(module) for name, module in roles.peft.named_modules()}
    weights = {name: id(parameter) for name, parameter in roles.peft.named_parameters()}
    forwards = [layer.layer.forward for layer in roles.slots.layers]
    assert len(forwards) == 14
    with roles.acting_as(Role.POLICY):
        roles.logprobs(make_batch(), 0.8)
        assert [layer.layer.forward for layer in roles.slots.layers] == forwards
        assert {name: id(module) for name, module in roles.peft.named_modules()} == before
        assert {name: id(parameter) for name, parameter in roles.peft.named_parameters()} == weights
        assert all(layer.slot is not None for layer in roles.slots.layers)
    assert all(layer.slot is None for layer in roles.slots.layers)


def test_adapters_of_other_ranks_and_layers_take_turns(tiny_base) -> None:
    """Also a layer that is quantised first, and adapted later."""
    roles, batch = make_roles(tiny_base("nf4")), make_batch()
    expected = gradients(roles, Role.REFERENCE, batch)
    roles.replace_adapter(
        Role.POLICY, PeftLoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    randomise(roles, Role.POLICY, seed=5)
    ours = gradients(roles, Role.POLICY, batch)
    assert {tuple(gradient.shape) for gradient in ours.values()} == {(3, 64), (64, 3)}
    found = gradients(roles, Role.REFERENCE, batch)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    for name, gradient in gradients(with_pefts_layers(roles, Role.POLICY), Role.POLICY, batch).items():
        torch.testing.assert_close(ours[name], gradient, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_other_kinds_of_adapters_are_refused(tiny_base, settings) -> None:
    roles = make_roles(tiny_base())
    with pytest.raises(ValueError, match=r"q_proj: only plain LoRA .* without DoRA and biases"):
        roles.replace_adapter(
            Role.POLICY, PeftLoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)
        )


def test_the_scales_of_nf4_are_those_of_the_base(tiny_base) -> None:
    """They are dequantised once; the base keeps its own, which the checksum reads."""
    base = tiny_base("nf4")
    checksum = base.checksum()
    roles = make_roles(base)
    for layer in roles.slots.layers:
        packed = layer.base.weight
        assert packed.quant_state.nested
        for dtype in (torch.float32, torch.bfloat16):
            assert torch.equal(layer.weight(dtype), dequantised(layer.base, dtype))
    assert base.checksum() == checksum
