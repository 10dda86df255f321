"""Rank-stabilised LoRA: the laws hold, and alpha / sqrt(rank) is exactly plain LoRA with alpha times sqrt(rank)."""

import json
from pathlib import Path

import pytest
import role_laws as laws
import tiny
import torch
from peft import PeftConfig, PeftModel
from tiny import DEVICE, LORA, gradients, make_batch, make_roles, random_tokens
from torch import Tensor
from transformers import AutoModelForCausalLM

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.layers.merging import merged
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.storage import save_role

RSLORA = LORA.model_copy(update={"use_rslora": True})
EQUAL = LORA.model_copy(update={"alpha": LORA.alpha * 2})  # the rank is 4
TOKENS = torch.tensor(random_tokens(3, [9]), device=DEVICE)


def roles_of(lora, tiny_base, monkeypatch: pytest.MonkeyPatch, quantization: str = "nf4") -> Roles:
    monkeypatch.setattr(tiny, "LORA", lora)
    return make_roles(tiny_base(quantization))


def merged_logits(roles: Roles, role: Role) -> Tensor:
    with merged(roles, role), torch.no_grad():
        return roles.base.model(input_ids=TOKENS).logits


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("role", [Role.POLICY, Role.CRITIC])
def test_gradients_are_those_of_plain_lora_with_a_larger_alpha(tiny_base, monkeypatch, quantization, role) -> None:
    found, expected, plain = (
        gradients(roles_of(lora, tiny_base, monkeypatch, quantization), role, make_batch())
        for lora in (RSLORA, EQUAL, LORA)
    )
    laws.assert_same(found, expected)
    assert not any(torch.equal(found[name], plain[name]) for name in found if ".lora_" in name)


def test_so_are_merged_weights(tiny_base, monkeypatch) -> None:
    found, expected, plain = (
        merged_logits(roles_of(lora, tiny_base, monkeypatch), Role.POLICY) for lora in (RSLORA, EQUAL, LORA)
    )
    assert torch.equal(found, expected)
    assert not torch.allclose(found, plain, atol=0.01)


def test_a_saved_adapter_does_the_same_on_plain_peft_and_fits_no_run_without_it(
    tiny_base, monkeypatch, tmp_path: Path
) -> None:
    roles = roles_of(RSLORA, tiny_base, monkeypatch, "none")
    save_role(roles, Role.POLICY, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(roles.base.config.source, dtype=torch.float32).to(DEVICE)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(plain, tmp_path).eval()(input_ids=TOKENS).logits
    with roles.acting_as(Role.POLICY):
        torch.testing.assert_close(roles.peft(input_ids=TOKENS).logits, theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"does not fit this run's section lora: use_rslora is True, not False"):
        load_role(roles_of(LORA, tiny_base, monkeypatch, "none"), Role.POLICY, tmp_path)


def test_what_a_saved_config_leaves_out_is_as_in_peft(tiny_base, monkeypatch, tmp_path: Path) -> None:
    """As in files of older PEFT versions: rsLoRA off, alpha 8."""
    save_role(roles_of(LORA, tiny_base, monkeypatch, "none"), Role.POLICY, tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: config[key] for key in ("peft_type", "r", "target_modules")}))
    assert LORA.alpha == PeftConfig.from_pretrained(tmp_path).lora_alpha == 8
    load_role(roles_of(LORA, tiny_base, monkeypatch, "none"), Role.POLICY, tmp_path)
    for lora, difference in ((RSLORA, "use_rslora is False, not True"), (EQUAL, r"lora_alpha is 8, not 16\.0")):
        with pytest.raises(UserError, match=f"does not fit this run's section lora: {difference}"):
            load_role(roles_of(lora, tiny_base, monkeypatch, "none"), Role.POLICY, tmp_path)


@pytest.mark.parametrize("role", Role)
def test_the_laws_hold(tiny_base, monkeypatch, tmp_path: Path, role: Role) -> None:
    for module in (tiny, laws):
        monkeypatch.setattr(module, "LORA", RSLORA)
    laws.only_the_acting_role_receives_gradients(tiny_base, "nf4", False, role)
    laws.checkpointing_changes_no_gradient(tiny_base, "nf4", role)
    laws.training_one_role_leaves_all_else_bit_identical(tiny_base, "nf4", True, role)
    laws.save_and_load_round_trip(tiny_base, tmp_path, "nf4", False, role)
    if role in (Role.POLICY, Role.CRITIC):
        laws.reading_and_generating_change_no_gradient(tiny_base, "nf4", False, role)
