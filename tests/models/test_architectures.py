"""Laws of the roles on a tiny random model of each architecture."""

from functools import partial

import architectures
import pytest
import torch
from role_laws import LAWS, check, each_law
from tiny import (
    ARCHITECTURES,
    gradients,
    load_tiny,
    make_batch,
    make_roles,
    make_tiny_model,
    random_tokens,
)

from lowrank_rlhf.config.schema import SampleConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models import logprobs
from lowrank_rlhf.models.generation import sample_answers
from lowrank_rlhf.models.roles import Role

OTHERS = [name for name in ARCHITECTURES if name != "llama"]
CHOICES = [(name, "nf4") for name in OTHERS]  # every storage on Llama: test_roles
CHOICES += [("qwen2", "int8"), ("gemma2", "int8")]  # the one has biases, the other the oddest decoder
everywhere = pytest.mark.parametrize(("architecture", "quantization"), CHOICES)


def test_all_eight_are_here() -> None:
    assert list(LAWS) == list(range(1, 9))


@everywhere
@each_law
def test_laws(tiny_base, tmp_path, architecture, quantization, law) -> None:
    base = partial(tiny_base, architecture=architecture)
    check(law, tiny_base=base, tmp_path=tmp_path, quantization=quantization, checkpointing=True)


@everywhere
def test_log_probabilities_are_those_of_the_whole_model(tiny_base, architecture, quantization) -> None:
    """Logits at all positions by the model's own forward, with its soft caps and scales."""
    roles, batch = make_roles(tiny_base(quantization, architecture=architecture)), make_batch()
    with roles.acting_as(Role.POLICY):
        found = roles.logprobs(batch, 0.8).logprobs[:, 1:]
        full = roles.peft(input_ids=batch.ids, attention_mask=batch.attention.long()).logits[:, :-1] / 0.8
    expected = full.log_softmax(-1).gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(found, expected * batch.response[:, 1:])


@everywhere
def test_answers_do_not_depend_on_their_batch(tiny_base, architecture, quantization) -> None:
    """Left padding, the cache beyond a sliding window of 8, merged weights: one prompt at a time gives the same."""
    roles = make_roles(tiny_base(quantization, architecture=architecture))
    prompts = random_tokens(3, [4, 14, 6])
    alike = [
        sample_answers(roles, Role.POLICY, prompts, SampleConfig(max_new_tokens=12, batch_size=size), seed=0)
        for size in (3, 1)
    ]
    assert alike[0] == alike[1]


def test_logits_scaled_in_a_way_not_known_here_are_refused(monkeypatch, tmp_path) -> None:
    folder = make_tiny_model(tmp_path / "granite", "granite")
    monkeypatch.setattr(logprobs, "_scale", lambda _: 1.0)
    with pytest.raises(UserError, match=r"GraniteForCausalLM is built in a way not .* eager: differs by \d"):
        load_tiny(folder)


@pytest.mark.parametrize("architecture", ["cohere", "granite"])
def test_gradients_through_scaled_logits_are_those_of_autograd(tmp_path, architecture) -> None:
    """Oracle: the model's own logits, which it multiplies by 0.25 or divides by 4."""
    roles, batch = make_roles(load_tiny(make_tiny_model(tmp_path, architecture))), make_batch()
    found = gradients(roles, Role.POLICY, batch)
    weights = torch.sin(batch.ids.float()) * batch.response  # as in `gradients`
    with roles.acting_as(Role.POLICY, train=True):
        full = roles.peft(input_ids=batch.ids, attention_mask=batch.attention.long()).logits[:, :-1] / 0.8
        expected = full.log_softmax(-1).gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
        roles.backward((expected * weights[:, 1:]).sum())
    for name, parameter in roles.named_parameters(Role.POLICY).items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}), ("bloom", {"n_layer": 2, "n_head": 4})],
)
def test_an_architecture_without_decoder_layers_is_refused(monkeypatch, tmp_path, architecture, shape) -> None:
    monkeypatch.setitem(ARCHITECTURES, architecture, shape)
    folder = make_tiny_model(tmp_path / architecture, architecture)
    with pytest.raises(UserError, match=r"decoder has no list `layers` of blocks .* Choose a model of the Llama"):
        load_tiny(folder)


def test_the_guide_lists_the_families_of_these_tests() -> None:
    text = architectures.GUIDE.read_text(encoding="utf-8")
    assert architectures.updated(text) == text, "run `python tools/architectures.py`"
    assert "`Gemma2ForCausalLM`, `Gemma3ForCausalLM`, `LlamaForCausalLM`" in text
