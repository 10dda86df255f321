"""Laws of the roles, on float32 and on real NF4, int8 and GGUF weights."""

import bitsandbytes as bnb
import pytest
from role_laws import check, each_law
from tiny import LORA, gradients, make_batch, make_roles

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.roles import Role, Roles

each_quantization = pytest.mark.parametrize("quantization", ["none", "nf4", "int8", "gguf"])
each_way = pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
each_role = pytest.mark.parametrize("role", Role)


@each_law
@pytest.mark.parametrize(
    ("quantization", "checkpointing"),
    [("none", False), ("nf4", False), ("int8", False), ("gguf", False), ("nf4", True)],
    ids=["none", "nf4", "int8", "gguf", "nf4-checkpointing"],
)
def test_laws(tiny_base, tmp_path, law, quantization, checkpointing) -> None:
    check(law, tiny_base=tiny_base, tmp_path=tmp_path, quantization=quantization, checkpointing=checkpointing)


@each_way
def test_checkpointing_is_what_the_config_says(tiny_base, checkpointing) -> None:
    roles = make_roles(tiny_base(checkpointing=checkpointing))
    calls = []
    roles.decoder.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    gradients(roles, Role.POLICY, make_batch())
    assert len(calls) == 1 + checkpointing


@each_quantization
def test_a_role_without_an_adapter_cannot_act(tiny_base, quantization) -> None:
    roles = Roles(tiny_base(quantization), LORA)
    assert roles.present == {Role.POLICY}
    with pytest.raises(RuntimeError, match="no adapter for CRITIC"), roles.acting_as(Role.CRITIC):
        pass


def test_nf4_weights_are_never_repacked(tiny_base, monkeypatch) -> None:
    """On CPUs with AVX512-BF16 gradients after an eval forward would be wrong; this test only simulates one."""
    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: True)
    assert bnb.nn.Linear4bit(4, 4).support_avx512bf16_for_cpu
    quantised = [m for m in tiny_base("nf4").model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(quantised) == 14
    assert not any(module.support_avx512bf16_for_cpu for module in quantised)


# --- The layers that get an adapter


@pytest.mark.parametrize(
    ("architecture", "named", "has", "meant"),
    [
        ("llama", "q_prj", "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj", "q_proj"),
        ("phi3", "gate_proj", "down_proj, gate_up_proj, o_proj, qkv_proj", "gate_up_proj"),
        ("llama", "lm_head", "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj", None),
    ],
)
def test_a_layer_that_the_model_has_not_is_refused(tiny_base, architecture, named, has, meant) -> None:
    """PEFT alone would ignore it, because the other name matches."""
    lora = LORA.model_copy(update={"target_modules": ("o_proj", named)})
    with pytest.raises(UserError) as caught:
        Roles(tiny_base(architecture=architecture), lora)
    assert str(caught.value) == (
        f'lora.target_modules: this model has no linear layer "{named}", only {has}. '
        "Set some of them, or all-linear." + (f' Did you mean "{meant}"?' if meant else "")
    )


def test_only_the_named_layers_get_an_adapter(tiny_base) -> None:
    roles = Roles(tiny_base(), LORA.model_copy(update={"target_modules": ("o_proj", "up_proj")}))
    adapted = {name.split(".")[-3] for name in roles.named_parameters(Role.POLICY)}
    assert adapted == {"o_proj", "up_proj"}
