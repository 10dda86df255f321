"""The fused product against PEFT's own layers, and the layers that it leaves to PEFT."""

import weakref
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from tiny import gradients, make_batch, make_roles, randomise

from lowrank_rlhf.models import roles as roles_module
from lowrank_rlhf.models.layers import lora_linear
from lowrank_rlhf.models.roles import Role


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8", "gguf"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])  # qwen2 has biases, phi3 packed projections
def test_gradients_are_those_of_pefts_layers(tiny_base, quantization, architecture, monkeypatch) -> None:
    roles, batch = make_roles(tiny_base(quantization, architecture=architecture)), make_batch()
    ours = gradients(roles, Role.POLICY, batch)
    monkeypatch.setattr(roles_module, "fused", lambda *_: nullcontext())
    for name, gradient in gradients(roles, Role.POLICY, batch).items():
        torch.testing.assert_close(ours[name], gradient, rtol=2e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


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


def test_layers_stand_where_they_were_and_parameters_keep_their_names(tiny_base) -> None:
    roles = make_roles(tiny_base("nf4"))
    before = {name: id(parameter) for name, parameter in roles.peft.named_parameters()}
    types = [type(module) for module in roles.peft.modules()]
    with roles.acting_as(Role.POLICY):
        assert {name: id(parameter) for name, parameter in roles.peft.named_parameters()} == before
        assert sum(isinstance(module, lora_linear._FusedLinear) for module in roles.peft.modules()) == 14
    assert [type(module) for module in roles.peft.modules()] == types


def test_dora_is_left_to_peft(tiny_base) -> None:
    roles = make_roles(tiny_base())
    roles.replace_adapter(
        Role.POLICY, PeftLoraConfig(r=4, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    )
    randomise(roles, Role.POLICY, seed=5)
    with roles.acting_as(Role.POLICY):
        assert not any(isinstance(module, lora_linear._FusedLinear) for module in roles.peft.modules())
