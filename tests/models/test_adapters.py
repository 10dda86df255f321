"""Other adapters loaded into a role: plain PEFT is the oracle for their outputs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, PeftModel, get_peft_model
from peft import LoraConfig as PeftLoraConfig
from safetensors.torch import load_file, save_file
from tiny import LORA, load_plain, make_batch, make_roles, randomise, snapshot
from torch import Tensor
from transformers import AutoModelForCausalLM

from lowrank_rlhf.config.schema import SampleConfig
from lowrank_rlhf.errors import ModelNotFinite, UserError
from lowrank_rlhf.models import adapters
from lowrank_rlhf.models.adapters import fill_role, load_role, trained_on
from lowrank_rlhf.models.generation import sample_answers
from lowrank_rlhf.models.layers.merging import merged
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.scoring import score_logprobs
from lowrank_rlhf.models.storage import CONFIG, WEIGHTS, save_role

both = pytest.mark.parametrize("quantization", ["none", "nf4"])
SHAPES: dict[str, dict[str, Any]] = {
    "another rank": {"r": 7, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"]},
    "other layers": {"r": 2, "lora_alpha": 16, "target_modules": ["gate_proj"], "layers_to_transform": [1]},
    "a pattern": {"r": 2, "target_modules": r".*layers\.0\..*(up|o)_proj", "rank_pattern": {"o_proj": 5}},
    "rslora": {"r": 4, "lora_alpha": 4, "use_rslora": True, "target_modules": ["k_proj"], "lora_dropout": 0.5},
    "alphas": {"r": 3, "target_modules": ["k_proj", "down_proj"], "alpha_pattern": {"down_proj": 40}},
}


def plain_adapter(roles: Roles, quantization: str, folder: Path, shape: dict[str, Any]) -> Path:
    """Save an adapter of that shape with non-zero weights by plain PEFT."""
    model = get_peft_model(
        load_plain(AutoModelForCausalLM, roles, quantization), PeftLoraConfig(task_type="CAUSAL_LM", **shape)
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def inputs() -> dict[str, Tensor]:
    batch = make_batch()
    return {"input_ids": batch.ids, "attention_mask": batch.attention.long()}


def logits(roles: Roles, role: Role) -> Tensor:
    with roles.acting_as(role):
        return roles.peft(**inputs()).logits[make_batch().attention]


def plain_logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(**inputs()).logits[make_batch().attention]


@both
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("role", [Role.POLICY, Role.REFERENCE])
def test_a_filled_role_computes_what_plain_peft_does(tiny_base, tmp_path, quantization, shape, role) -> None:
    roles = make_roles(tiny_base(quantization))
    folder = plain_adapter(roles, quantization, tmp_path, shape)
    others = {other: snapshot(roles, other) for other in Role if other is not role}
    other = Role.REFERENCE if role is Role.POLICY else Role.POLICY
    before = logits(roles, other)

    fill_role(roles, role, folder)

    plain = load_plain(AutoModelForCausalLM, roles, quantization)
    without = plain_logits(plain)
    expected = plain_logits(PeftModel.from_pretrained(plain, folder))
    assert (expected - without).abs().max() > 0.1  # the adapter matters
    torch.testing.assert_close(logits(roles, role), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(logits(roles, other), before)
    for name, weights in others.items():
        now = snapshot(roles, name)
        assert now.keys() == weights.keys()
        assert all(torch.equal(now[key], weights[key]) for key in weights)
    with torch.no_grad(), merged(roles, role):
        torch.testing.assert_close(plain_logits(roles.base.model), expected, rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in roles.peft.parameters())


@both
def test_none_is_the_bare_base(tiny_base, tmp_path, quantization) -> None:
    roles = make_roles(tiny_base(quantization))
    bare = plain_logits(load_plain(AutoModelForCausalLM, roles, quantization))
    assert not torch.allclose(logits(roles, Role.POLICY), bare, atol=0.1)
    fill_role(roles, Role.POLICY, None)
    torch.testing.assert_close(logits(roles, Role.POLICY), bare, rtol=1e-5, atol=1e-5)
    fill_role(roles, Role.REFERENCE, plain_adapter(roles, quantization, tmp_path, SHAPES["other layers"]))
    fill_role(roles, Role.REFERENCE, None)
    torch.testing.assert_close(logits(roles, Role.REFERENCE), bare, rtol=1e-5, atol=1e-5)


def test_one_adapter_in_two_slots(tiny_base, tmp_path) -> None:
    roles = make_roles(tiny_base())
    save_role(roles, Role.POLICY, tmp_path)
    expected = logits(roles, Role.POLICY)
    randomise(roles, Role.POLICY, 9)
    fill_role(roles, Role.POLICY, tmp_path)
    fill_role(roles, Role.REFERENCE, tmp_path)
    assert torch.equal(logits(roles, Role.POLICY), expected)
    assert torch.equal(logits(roles, Role.REFERENCE), expected)


def test_a_role_with_a_head(tiny_base, tmp_path) -> None:
    """The reward model's head comes along, and the layers above the head's have no weights."""
    roles = Roles(tiny_base(), LORA, head_layers=1)
    randomise(roles, Role.REWARD, 3)
    save_role(roles, Role.REWARD, tmp_path)
    expected = snapshot(roles, Role.REWARD)
    randomise(roles, Role.REWARD, 4)
    fill_role(roles, Role.REWARD, tmp_path)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in snapshot(roles, Role.REWARD).items())


def test_a_role_that_comes_later_has_the_run_s_shape(tiny_base, tmp_path) -> None:
    roles = make_roles(tiny_base())
    save_role(roles, Role.REFERENCE, tmp_path / "run")
    folder = plain_adapter(roles, "none", tmp_path / "other", SHAPES["another rank"])
    fresh = Roles(tiny_base(), LORA)
    fill_role(fresh, Role.POLICY, folder)
    load_role(fresh, Role.REFERENCE, tmp_path / "run")
    torch.testing.assert_close(logits(fresh, Role.REFERENCE), logits(roles, Role.REFERENCE), rtol=0, atol=0)


def test_shared_lower_layers_end_where_the_lowest_adapter_begins(tiny_base, tmp_path) -> None:
    """The run adapts the top layer only; an adapter of the lower one must not be skipped by the shared lower layers."""
    roles = Roles(tiny_base(), LORA.model_copy(update={"last_layers": 1}))
    assert roles.first_adapted == 1
    randomise(roles, Role.POLICY, 1)
    fill_role(roles, Role.REFERENCE, plain_adapter(roles, "none", tmp_path, SHAPES["a pattern"]))
    assert roles.first_adapted == 0
    batch = make_batch()
    found = score_logprobs(roles, Role.REFERENCE, roles.with_lower_states(batch), 1.0).logprobs
    expected = score_logprobs(roles, Role.REFERENCE, batch, 1.0).logprobs
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    whole = PeftModel.from_pretrained(load_plain(AutoModelForCausalLM, roles, "none"), tmp_path).eval()
    with torch.no_grad():
        steps = whole(**inputs()).logits.log_softmax(-1)[:, :-1].gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(expected[:, 1:], steps * batch.response[:, 1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("merging", [True, False])
def test_sampling_through_an_adapter_of_another_shape(tiny_base, tmp_path, merging) -> None:
    roles = make_roles(tiny_base(merged=merging))
    prompts = [[5, 6, 7], [8, 9]]
    folder = plain_adapter(roles, "none", tmp_path, SHAPES["other layers"])
    fill_role(roles, Role.POLICY, folder)
    fill_role(roles, Role.REFERENCE, folder)
    draw: Callable = lambda role: sample_answers(  # noqa: E731
        roles, role, prompts, SampleConfig(max_new_tokens=8, batch_size=4), seed=1
    )
    assert draw(Role.POLICY) == draw(Role.REFERENCE)
    fill_role(roles, Role.REFERENCE, None)
    assert draw(Role.POLICY) != draw(Role.REFERENCE)


def test_the_base_it_was_trained_on(tiny_base, tmp_path) -> None:
    roles = make_roles(tiny_base())
    save_role(roles, Role.POLICY, tmp_path)
    assert trained_on(tmp_path) == roles.base.config.source
    change(tmp_path, base_model_name_or_path=None)
    assert trained_on(tmp_path) is None


# --- errors


def change(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | settings))


@pytest.fixture
def roles(tiny_base) -> Roles:
    return make_roles(tiny_base())


def refused(roles: Roles, folder: Path) -> str:
    """Return the error's message, after checking that no role changed."""
    before = {role: snapshot(roles, role) for role in Role}
    with pytest.raises(UserError) as caught:
        fill_role(roles, Role.POLICY, folder)
    for role, weights in before.items():
        now = snapshot(roles, role)
        assert now.keys() == weights.keys()
        assert all(torch.equal(now[name], weights[name]) for name in weights)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"use_dora": True}, "use_dora: True: not supported"),
        ({"bias": "all"}, "bias: 'all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"modules_to_save": ["score"]}, "modules_to_save"),  # a policy has no head
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: 'pissa_niter_4'"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"a_setting_of_tomorrow": 3}, "a_setting_of_tomorrow: 3"),
        ({"peft_type": "IA3"}, "of type IA3 are not supported, only LORA"),
        ({"r": 0}, "r: Input should be greater than or equal to 1"),
        ({"r": "many"}, "r: Input should be a valid integer"),
        ({"lora_alpha": float("nan")}, "lora_alpha: Input should be a finite number"),
        ({"target_modules": None}, "target_modules"),
        ({"target_modules": "("}, "not a regular expression"),
        ({"target_modules": ["c_attn"]}, "the base has no layer of that name"),
        ({"target_modules": ["q_proj", "lm_head"]}, "adapts lm_head"),
        ({"target_modules": ["input_layernorm"]}, "adapts model.layers.0.input_layernorm"),
        ({"target_modules": "q_proj", "layers_to_transform": [0]}, "layers_to_transform"),
        ({"target_modules": ["q_proj"]}, "unexpected base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"),
        ({"r": 5}, "lora_A.weight is (4, 128), not (5, 128)"),
    ],
)
def test_what_would_compute_something_else_is_refused(roles, tmp_path, settings, says) -> None:
    save_role(roles, Role.POLICY, tmp_path)
    change(tmp_path, **settings)
    assert says in refused(roles, tmp_path)


@pytest.mark.parametrize("name", ["score.weight", "model.layers.1.mlp.up_proj.lora_B.weight"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(roles, tmp_path, name, value) -> None:
    save_role(roles, Role.REWARD, tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    weights[f"base_model.model.{name}"][0, 0] = value
    save_file(weights, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    before = snapshot(roles, Role.REWARD)
    with pytest.raises(ModelNotFinite, match=rf"1 of \d+ tensors contain NaN or infinite .*{name} .*train it again"):
        load_role(roles, Role.REWARD, tmp_path)
    assert all(torch.equal(now, before[key]) for key, now in snapshot(roles, Role.REWARD).items())


def test_a_new_setting_of_peft_is_plain_lora_at_its_default(roles, tmp_path, monkeypatch) -> None:
    save_role(roles, Role.POLICY, tmp_path)
    change(tmp_path, a_setting_of_tomorrow=3)
    monkeypatch.setitem(adapters._DEFAULTS, "a_setting_of_tomorrow", 3)
    fill_role(roles, Role.POLICY, tmp_path)
    change(tmp_path, a_setting_of_tomorrow=4)
    assert "a_setting_of_tomorrow: 4" in refused(roles, tmp_path)


def test_a_tensor_too_few_or_too_many(roles, tmp_path) -> None:
    save_role(roles, Role.POLICY, tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    first = min(weights)
    save_file({name: tensor for name, tensor in weights.items() if name != first}, tmp_path / WEIGHTS)
    assert f"missing {first}" in refused(roles, tmp_path)
    save_file(weights | {"extra": torch.zeros(1)}, tmp_path / WEIGHTS)
    assert "unexpected extra" in refused(roles, tmp_path)


def test_a_real_adapter_of_another_kind(roles, tmp_path) -> None:
    model = get_peft_model(load_plain(AutoModelForCausalLM, roles, "none"), IA3Config(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path)
    assert "PEFT adapters of type IA3" in refused(roles, tmp_path)


def test_files_that_are_missing_or_no_adapter(roles, tmp_path) -> None:
    assert "folder not found" in refused(roles, tmp_path / "nowhere")
    assert "adapter_config.json not found" in refused(roles, tmp_path)
    save_role(roles, Role.POLICY, tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    assert "a pickle, which can run code when loaded" in refused(roles, tmp_path)
    (tmp_path / "adapter_model.bin").unlink()
    assert "adapter_model.safetensors not found" in refused(roles, tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"what")
    assert "not a readable safetensors file" in refused(roles, tmp_path)
    (tmp_path / CONFIG).write_text("[1]")
    assert "not a JSON object" in refused(roles, tmp_path)


def test_no_leftovers_of_the_shape_before(roles, tmp_path) -> None:
    """From one shape to another and back gives the numbers of the first."""
    save_role(roles, Role.POLICY, tmp_path / "mine")
    expected = logits(roles, Role.POLICY)
    fill_role(roles, Role.POLICY, plain_adapter(roles, "none", tmp_path / "other", SHAPES["alphas"]))
    assert not torch.equal(logits(roles, Role.POLICY), expected)
    fill_role(roles, Role.POLICY, tmp_path / "mine")
    assert torch.equal(logits(roles, Role.POLICY), expected)
    assert len(roles.parameters(Role.POLICY)) == 2 * 7 * 2
