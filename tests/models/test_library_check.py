"""Comparison of each loaded model with transformers' eager attention."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FURTHER, load_tiny, make_batch, make_roles, make_tiny_model, random_tokens
from transformers import AutoModelForCausalLM

from lowrank_rlhf.config.schema import SampleConfig
from lowrank_rlhf.errors import ExitCode, UserError
from lowrank_rlhf.models.base import load_base
from lowrank_rlhf.models.generation import sample_answers
from lowrank_rlhf.models.layers import attention
from lowrank_rlhf.models.loading import library_check
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.run.progress import Progress


class Lines(Progress):
    """Progress that collects what is said."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def notes(monkeypatch) -> list[str]:
    """Load tiny models with a progress that collects its lines here."""
    progress = Lines()
    monkeypatch.setattr("tiny.load_base", lambda config, _: load_base(config, progress))
    return progress.lines


def attention_of(base) -> str:
    return base.model.config.get_text_config()._attn_implementation


@pytest.mark.parametrize("architecture", FURTHER)
def test_further_families_give_the_log_probabilities_of_transformers(tmp_path, architecture) -> None:
    """For the attention sinks of gpt_oss our attention gave others, by up to 2.67 nats."""
    folder = make_tiny_model(tmp_path / architecture, architecture)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    roles, batch = make_roles(load_tiny(folder)), make_batch()
    for role in Role:
        roles.reset(role, torch.Generator().manual_seed(0))  # no effect: the base alone
    with roles.acting_as(Role.POLICY):
        found = roles.logprobs(batch, 1.0).logprobs[:, 1:]
    with torch.no_grad():
        full = model(input_ids=batch.ids, attention_mask=batch.attention.long()).logits[:, :-1].log_softmax(-1)
    expected = full.gather(-1, batch.ids[:, 1:, None]).squeeze(-1) * batch.response[:, 1:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    alike = [
        sample_answers(
            roles, Role.POLICY, random_tokens(3, [4, 14, 6]), SampleConfig(max_new_tokens=8, batch_size=n), 0
        )
        for n in (3, 1)
    ]
    assert alike[0] == alike[1]


def test_our_attention_refuses_keywords_that_it_does_not_know() -> None:
    q = torch.randn(1, 2, 3, 8)
    for keyword in ("s_aux", "softcap", "position_bias"):
        with pytest.raises(NotImplementedError, match=f"does not support {keyword}"):
            attention.attention(torch.nn.Module(), q, q, q, None, **{keyword: torch.ones(2)})
    attention.attention(torch.nn.Module(), q, q, q, None, softcap=None, sliding_window=4)
    with pytest.raises(NotImplementedError, match="causal layers and boolean masks"):
        attention.attention(torch.nn.Module(), q, q, q, torch.zeros(1, 1, 3, 3))
    with pytest.raises(NotImplementedError, match="causal layers and boolean masks"):
        attention.attention(torch.nn.Module(), q, q, q, None, is_causal=False)


def test_values_narrower_than_keys() -> None:
    """As in multi-head latent attention."""
    q, k, v = torch.randn(2, 4, 5, 12), torch.randn(2, 2, 5, 12), torch.randn(2, 2, 5, 7)
    found, _ = attention.attention(torch.nn.Module(), q, k, v, None)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(found, plain.transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_attention_that_differs_is_not_used(tiny_folder, monkeypatch, notes) -> None:
    assert attention_of(load_tiny(tiny_folder())) == attention.NAME
    assert notes == []
    real = attention._probabilities
    monkeypatch.setattr(attention, "_probabilities", lambda q, k, mask, scale: real(q, k, mask, 2 * scale))
    assert attention_of(load_tiny(tiny_folder())) == "sdpa"
    assert len(notes) == 1
    assert notes[0].startswith("NOTE: LlamaForCausalLM: the attention of this package differs from that of")


def test_a_cache_that_differs_is_refused_with_the_figure(tiny_folder, monkeypatch) -> None:
    """No attention helps: every one decodes on the same cache."""
    real = library_check.prefill

    def one_too_far(model, prompts, pad, repeats, more, poll):
        states, steps = real(model, prompts, pad, repeats, more, poll)
        steps.position = steps.position + 7
        return states, steps

    monkeypatch.setattr(library_check, "prefill", one_too_far)
    with pytest.raises(UserError, match=r"LlamaForCausalLM is built in a way not known.*eager: differs by [\d.]+ n"):
        load_tiny(tiny_folder())


@pytest.mark.parametrize("place", ["prefill", "_library_logprobs"])
def test_any_exception_of_an_architecture_is_a_sentence(tiny_folder, monkeypatch, place) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a layer of its own kind")

    monkeypatch.setattr(library_check, place, broken)
    with pytest.raises(UserError, match=r"LlamaForCausalLM is built in a way not known.*a layer of its own") as raised:
        load_tiny(tiny_folder())
    assert raised.value.exit_code == ExitCode.BAD_INPUT


def test_not_a_number_in_the_weights_is_found_at_load(tmp_path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.v_proj.weight"][3, 3] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="LlamaForCausalLM gives NaN or infinite log-probabilities") as raised:
        load_tiny(folder)
    assert raised.value.exit_code == ExitCode.NOT_FINITE
