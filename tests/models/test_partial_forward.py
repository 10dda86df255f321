"""`lora.last_layers`: the layers below run once for all roles. `reward.layers`: the layers above don't run at all."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import tiny
import torch
from peft import PeftModel
from tiny import (
    ARCHITECTURES,
    DEVICE,
    gradients,
    load_plain,
    load_tiny,
    make_batch,
    make_tiny_model,
    randomise,
    snapshot,
)
from tiny_run import limit_tokens
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lowrank_rlhf.config.schema import LoraConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.maths.masking import pool
from lowrank_rlhf.maths.sequences import Sequences
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.loading import library_check
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.scoring import score_logprobs, score_tokens
from lowrank_rlhf.models.storage import save_role

LAYERS = 4
both = pytest.mark.parametrize("quantization", ["none", "nf4"])
each_way = pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
each_role = pytest.mark.parametrize("role", Role)


@pytest.fixture(scope="session")
def deep_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Like `tiny_folder`, with four layers instead of two: some below and some above the adapted ones."""

    @cache
    def make(architecture: str = "llama") -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(tiny.COMMON, "num_hidden_layers", LAYERS)
            return make_tiny_model(tmp_path_factory.mktemp(f"deep-{architecture}"), architecture)

    return make


@pytest.fixture
def deep_roles(deep_folder) -> Callable[..., Roles]:
    """All roles with random adapters in the last layers only."""

    def make(quantization="none", checkpointing=False, last_layers=2, architecture="llama", head_layers=None) -> Roles:
        base = load_tiny(deep_folder(architecture), quantization, checkpointing)
        roles = Roles(base, LoraConfig(rank=4, alpha=8, last_layers=last_layers), head_layers)
        for seed, role in enumerate(Role):
            randomise(roles, role, seed)
        return roles

    return make


def outputs(roles: Roles, role: Role, batch: Sequences) -> list[Tensor]:
    """Hidden states of the real tokens, and the role's outputs."""
    with roles.acting_as(role):
        hidden = roles.hidden(batch)[batch.attention]
        out = roles.scores(batch)[batch.attention] if role.has_head else roles.logprobs(batch, 0.8).logprobs
    return [hidden, out]


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@both
@each_way
@each_role
def test_lower_states_change_no_output_and_no_gradient(deep_roles, quantization, checkpointing, role) -> None:
    roles, batch = deep_roles(quantization, checkpointing), make_batch()
    ahead = roles.with_lower_states(batch)
    assert ahead.lower is not None
    assert ahead.lower.shape == (*batch.ids.shape, roles.base.model.config.hidden_size)
    for found, expected in zip(outputs(roles, role, ahead), outputs(roles, role, batch), strict=True):
        assert_close(found, expected)
    expected = gradients(roles, role, batch)
    for name, gradient in gradients(roles, role, ahead).items():
        assert_close(gradient, expected[name])
        assert gradient.abs().max() > 0
    assert len(expected) == 2 * 7 * 2 + role.has_head


@both
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "llama"])
def test_on_other_architectures(deep_roles, quantization, architecture) -> None:
    roles, batch = deep_roles(quantization, architecture=architecture), make_batch()
    ahead = roles.with_lower_states(batch)
    for role in (Role.POLICY, Role.CRITIC):
        for found, expected in zip(outputs(roles, role, ahead), outputs(roles, role, batch), strict=True):
            assert_close(found, expected)
        expected = gradients(roles, role, batch)
        for name, gradient in gradients(roles, role, ahead).items():
            assert_close(gradient, expected[name])


@pytest.mark.parametrize("last_layers", [1, 3])
def test_any_depth_and_any_cut(deep_roles, last_layers) -> None:
    """Row order, micro-batches and padding of the lower layers' forward change nothing."""
    roles, batch = deep_roles(last_layers=last_layers), make_batch()
    limit_tokens(roles.base, 20)
    ahead = roles.with_lower_states(batch)
    assert_close(
        score_logprobs(roles, Role.POLICY, ahead, 0.8).logprobs, score_logprobs(roles, Role.POLICY, batch, 0.8).logprobs
    )
    assert_close(score_tokens(roles, Role.REWARD, ahead), score_tokens(roles, Role.REWARD, batch))
    rows = ahead.rows([4, 1])
    assert rows.lower is not None
    assert rows.lower.shape[:2] == rows.ids.shape
    for found, expected in zip(
        outputs(roles, Role.POLICY, rows), outputs(roles, Role.POLICY, batch.rows([4, 1])), strict=True
    ):
        assert_close(found, expected)


def test_the_forward_really_begins_above_the_lower_layers(deep_roles) -> None:
    """Other states give other results, and the layers below are not run."""
    roles, batch, calls = deep_roles(), make_batch(), []
    ahead = roles.with_lower_states(batch)
    for index, layer in enumerate(roles.decoder.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    before = outputs(roles, Role.POLICY, ahead)[0]
    assert calls[:2] == [2, 3]
    assert set(calls) == {2, 3}
    ahead.lower.mul_(0.5)
    assert (outputs(roles, Role.POLICY, ahead)[0] - before).abs().max() > 0.01
    calls.clear()
    roles.with_lower_states(batch)
    assert calls == [0, 1]


def test_only_the_last_layers_have_adapters(deep_roles) -> None:
    roles = deep_roles(last_layers=1)
    for role in Role:
        layers = {name.split(".layers.")[1].split(".")[0] for name in roles.named_parameters(role) if "lora_" in name}
        assert layers == {"3"}
    assert roles.first_adapted == 3


@pytest.mark.parametrize("last_layers", [None, LAYERS])
def test_no_lower_states_where_all_layers_have_adapters(deep_roles, last_layers) -> None:
    roles, batch = deep_roles(last_layers=last_layers), make_batch()
    assert roles.first_adapted == 0
    assert roles.with_lower_states(batch) is batch
    assert len(roles.parameters(Role.POLICY)) == 2 * 7 * LAYERS


def test_the_layers_are_back_after_an_error(deep_roles) -> None:
    roles, batch = deep_roles(), make_batch()
    layers = list(roles.decoder.layers)
    ahead = roles.with_lower_states(batch)
    expected = outputs(roles, Role.REWARD, batch)
    assert list(roles.decoder.layers) == layers

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    for layer, call in (
        (layers[0], lambda: roles.with_lower_states(batch)),
        (layers[3], lambda: outputs(roles, Role.POLICY, ahead)),
    ):
        hook = layer.register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            call()
        hook.remove()
        assert list(roles.decoder.layers) == layers
    for found, before in zip(outputs(roles, Role.REWARD, batch), expected, strict=True):
        assert torch.equal(found, before)


@both
def test_lower_states_are_the_same_whichever_role_acted_before(deep_roles, quantization) -> None:
    roles, batch = deep_roles(quantization), make_batch()
    expected = roles.with_lower_states(batch).lower
    for role in Role:
        gradients(roles, role, batch)
        assert torch.equal(roles.with_lower_states(batch).lower, expected)
        with roles.acting_as(role):
            assert torch.equal(roles.with_lower_states(batch).lower, expected)
    assert not expected.requires_grad


def test_a_saved_adapter_loads_in_plain_peft(deep_roles, tmp_path) -> None:
    roles, batch = deep_roles(), make_batch()
    save_role(roles, Role.POLICY, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["layers_to_transform"] == [2, 3]
    plain = AutoModelForCausalLM.from_pretrained(roles.base.config.source, dtype=torch.float32).to(DEVICE)
    model = PeftModel.from_pretrained(plain, tmp_path).eval()
    inputs = {"input_ids": batch.ids, "attention_mask": batch.attention.long()}
    with roles.acting_as(Role.POLICY):
        expected = roles.peft(**inputs).logits[batch.attention]
        torch.testing.assert_close(model(**inputs).logits[batch.attention], expected, rtol=1e-5, atol=1e-5)
        with model.disable_adapter():
            assert (model(**inputs).logits[batch.attention] - expected).abs().max() > 0.1
    before = {name: parameter.clone() for name, parameter in roles.named_parameters(Role.POLICY).items()}
    randomise(roles, Role.POLICY, 9)
    load_role(roles, Role.POLICY, tmp_path)
    assert all(torch.equal(parameter, before[name]) for name, parameter in roles.named_parameters(Role.POLICY).items())


# --- Reward model and critic with fewer layers


@both
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_reward_model_of_three_layers_is_a_plain_classifier_of_three_layers(
    deep_roles, tmp_path, quantization, architecture
) -> None:
    roles, batch = deep_roles(quantization, architecture=architecture, head_layers=3), make_batch()
    save_role(roles, Role.REWARD, tmp_path)
    classifier = load_plain(AutoModelForSequenceClassification, roles, quantization, num_labels=1, num_hidden_layers=3)
    classifier.config.pad_token_id = roles.base.pad
    model = PeftModel.from_pretrained(classifier, tmp_path).eval()
    with torch.no_grad():
        expected = model(input_ids=batch.ids, attention_mask=batch.attention.long()).logits.squeeze(-1)
    for rows in (batch, roles.with_lower_states(batch)):
        found = pool(score_tokens(roles, Role.REWARD, rows), batch.response, "last")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


@each_way
def test_their_upper_layers_do_not_run_and_do_not_learn(deep_roles, checkpointing) -> None:
    roles, batch = deep_roles(checkpointing=checkpointing, head_layers=3), make_batch()
    whole = deep_roles(checkpointing=checkpointing)
    calls: list[int] = []
    for index, layer in enumerate(roles.decoder.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    ahead = roles.with_lower_states(batch)
    for role, layers in ((Role.CRITIC, {2}), (Role.REWARD, {2}), (Role.POLICY, {2, 3})):
        calls.clear()
        expected = gradients(roles, role, batch)
        assert set(calls) == {0, 1} | layers
        calls.clear()
        for name, gradient in gradients(roles, role, ahead).items():
            assert_close(gradient, expected[name])
            assert gradient.abs().max() > 0
        assert set(calls) == layers
        assert len(expected) == len(layers) * 7 * 2 + role.has_head
    for found, expected in zip(outputs(roles, Role.POLICY, batch), outputs(whole, Role.POLICY, batch), strict=True):
        assert torch.equal(found, expected)
    assert (score_tokens(roles, Role.REWARD, batch) - score_tokens(whole, Role.REWARD, batch)).abs().max() > 0.01


def test_their_files_hold_their_layers_only(deep_roles, tmp_path) -> None:
    roles = deep_roles(head_layers=3)
    save_role(roles, Role.CRITIC, tmp_path / "three")
    expected = snapshot(roles, Role.CRITIC)
    assert len(expected) == 7 * 2 + 1
    randomise(roles, Role.CRITIC, 9)
    load_role(roles, Role.CRITIC, tmp_path / "three")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in snapshot(roles, Role.CRITIC).items())
    save_role(deep_roles(), Role.CRITIC, tmp_path / "four")
    with pytest.raises(UserError, match=r"unexpected .*layers\.3\."):
        load_role(roles, Role.CRITIC, tmp_path / "four")


@pytest.mark.parametrize("head_layers", [1, 2, 5])
def test_they_need_an_adapter_and_no_more_layers_than_there_are(deep_roles, head_layers) -> None:
    with pytest.raises(UserError, match=rf"reward\.layers: must be from 3 .* to 4 .*, not {head_layers}"):
        deep_roles(head_layers=head_layers)


def test_no_more_layers_can_be_adapted_than_there_are(deep_roles) -> None:
    with pytest.raises(UserError, match=r"lora\.last_layers: must be at most 4, the model's layers, not 5"):
        deep_roles(last_layers=LAYERS + 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_upper_layers_that_give_other_states_are_refused(deep_folder, monkeypatch, dtype) -> None:
    """By two per cent: less than rounding to bfloat16 may be."""
    base, real = load_tiny(deep_folder(), compute_dtype=dtype), library_check.lower_states
    noise = torch.randn(1, 12, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(library_check, "lower_states", lambda *given: real(*given) * (1 + 0.02 * noise))
    with pytest.raises(UserError, match=r"LlamaForCausalLM is built in a way not known here: its upper layers alone"):
        Roles(base, LoraConfig(rank=4, last_layers=2))
