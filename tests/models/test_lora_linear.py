"""The layers with a slot against PEFT's own layers, and a switch of role that touches no module."""

import shutil
import weakref

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from tiny import bfloat16_works, gradients, load_tiny, make_batch, make_roles, make_tiny_model, randomise, role_loss
from tiny_sources import make_gguf
from torch import nn

from lowrank_rlhf.config.schema import SampleConfig
from lowrank_rlhf.models.generation import sample_answers
from lowrank_rlhf.models.layers.joint_weights import layers_by_input
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
        assert all(joint.slot is not None for joint in roles.slots.joints)
    assert all(joint.slot is None for joint in roles.slots.joints)


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


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8", "gguf", "Q4_0", "Q4_1", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_layers_that_read_the_same_share_a_weight(tiny_folder, tmp_path, quantization, architecture) -> None:
    """Every number is that of the layers; the base's weights are parts of it, and its checksum is the same."""
    folder = tiny_folder(architecture)
    if quantization.startswith("Q"):  # a GGUF file of one block type
        folder = shutil.copytree(folder, tmp_path / architecture)
        make_gguf(folder, folder.with_suffix(".gguf"), architecture, kinds=(quantization,))
    base = load_tiny(folder, "gguf" if quantization.startswith("Q") else quantization)
    checksum, decoder = base.checksum(), base.model.get_decoder()
    linear = {name: layer for name, layer in decoder.named_modules() if isinstance(layer, nn.Linear)}
    before = {id(layer): (name.rpartition(".")[2], dequantised(layer)) for name, layer in linear.items()}
    roles = make_roles(base)
    joints = [[layer.base for layer in joint.layers] for joint in roles.slots.joints]
    names = [[before[id(layer)][0] for layer in layers] for layers in joints]
    expected = 2 * [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    in_file = quantization == "none" and base.device.type == "cpu"  # its weights may be pages of the file
    if in_file or quantization == "gguf":  # of which no siblings have the same block type
        expected = [[name] for names in expected for name in names]
    assert names == expected
    for joint, layers in zip(roles.slots.joints, joints, strict=True):
        weight = torch.cat([before[id(layer)][1] for layer in layers])
        for dtype in (torch.float32, torch.bfloat16):
            assert torch.equal(joint.weight(dtype), weight.to(dtype))
        storages = [layer.weight.untyped_storage() for layer in layers]
        assert len({storage.data_ptr() for storage in storages}) == 1
        assert storages[0].nbytes() == sum(layer.weight.nbytes for layer in layers)
    assert base.checksum() == checksum


def test_another_input_of_a_sibling_is_computed(tiny_base) -> None:
    """Outputs belong to the tensor that they were computed from, not to its contents or its place in memory."""
    roles = make_roles(tiny_base("nf4"))
    attention = roles.decoder.layers[0].self_attn
    x, y = torch.randn(2, 3, 5, 64, generator=torch.Generator().manual_seed(0)).to(roles.base.device)
    with roles.acting_as(Role.POLICY):
        expected = [attention.q_proj(x.clone()), attention.k_proj(y.clone())]
        attention.q_proj(x)
        assert torch.equal(attention.k_proj(y), expected[1])
        for _ in range(2):
            assert torch.equal(attention.q_proj(x), expected[0])
        kept = weakref.ref(x)
        del x
        assert kept() is not None  # keys and values of it may still be asked for
    assert kept() is None


def test_layers_of_other_formats_have_products_of_their_own(tiny_base) -> None:
    """A GGUF file may store the values in another type than the queries."""
    base = tiny_base("nf4")
    attention = base.model.get_decoder().layers[0].self_attn
    attention.v_proj = nn.Linear(64, 32, bias=False, device=base.device).requires_grad_(False)
    roles, batch = make_roles(base), make_batch()
    assert [len(joint.layers) for joint in roles.slots.joints] == [1, 1, 1, 1, 2, 1, 3, 1, 2, 1]
    ours = gradients(roles, Role.POLICY, batch)
    for name, gradient in gradients(with_pefts_layers(roles, Role.POLICY), Role.POLICY, batch).items():
        torch.testing.assert_close(ours[name], gradient, rtol=2e-4, atol=2e-5)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(4, 4) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x) + self.b(x)
        return self.c(x.add_(1)) + self.d(y) + self.e(y) + self.e(x)


def test_inputs_changed_in_place_are_other_inputs() -> None:
    block = _Block()
    assert layers_by_input(block, lambda: block(torch.zeros(4))) == [[block.a, block.b], [block.c], [block.d]]


class _Clipped(nn.Module):
    """As in OLMo with `clip_qkv`: the first output is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c = self.a(x), self.b(x), self.c(x)
        return a.view(2, 2).clamp_(-0.1, 0.1).view(4) + b + c


def test_a_layer_whose_output_changes_in_place_has_a_product_of_its_own() -> None:
    block = _Clipped()
    assert layers_by_input(block, lambda: block(torch.ones(4))) == [[block.b, block.c]]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_olmo_clips_its_projections_in_place(tmp_path, quantization) -> None:
    """Gradients are those of PEFT's layers."""
    roles = make_roles(load_tiny(make_tiny_model(tmp_path / "olmo", "olmo"), quantization))
    batch = make_batch()
    ours = gradients(roles, Role.POLICY, batch)
    for name, gradient in gradients(with_pefts_layers(roles, Role.POLICY), Role.POLICY, batch).items():
        torch.testing.assert_close(ours[name], gradient, rtol=2e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_nothing_is_kept_of_a_batch_that_ran_out_of_memory(tiny_folder) -> None:
    """Sampling failed between the products of gate and up, of which the first had computed both, and tries half."""
    roles = make_roles(load_tiny(tiny_folder(), "nf4"))
    limits, kept = roles.base.limits, []
    halve = limits.halve_rows

    def fail(_activation: nn.Module, _given: object) -> None:
        hook.remove()
        raise MemoryError

    def look(*args: object) -> None:
        kept.append(sum(len(joint._outputs) for joint in roles.slots.joints))
        halve(*args)

    hook = roles.decoder.layers[0].mlp.act_fn.register_forward_pre_hook(fail)
    limits.halve_rows = look
    sample_answers(roles, Role.POLICY, [[1, 2, 3]] * 4, SampleConfig(max_new_tokens=2), seed=0)
    assert kept == [0]
