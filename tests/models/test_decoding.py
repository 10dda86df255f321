"""Decoding steps of fixed shape, as recorded on a GPU: supported models, and unchanged answers."""

import pytest
import torch
from tiny import ARCHITECTURES, DEVICE, make_roles
from tiny_sampling import LENGTH, PROMPTS, naive, sample
from transformers import LlamaConfig

from lowrank_rlhf.models import decoding
from lowrank_rlhf.models.decoding import GrowingSteps, RecordedSteps, has_plain_attention, prefill
from lowrank_rlhf.models.generation import generating_as
from lowrank_rlhf.models.layers.kv_cache import growing_cache
from lowrank_rlhf.models.roles import Role

SERVED = ("llama", "qwen2", "qwen3", "phi3")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sliding_windows_and_capped_scores_are_not_recorded(tiny_base, architecture) -> None:
    model = tiny_base(architecture=architecture).model
    assert has_plain_attention(model, growing_cache(model.config)) == (architecture in SERVED)


@pytest.mark.parametrize(("rope", "recorded"), [("default", True), ("yarn", True), ("dynamic", False)])
def test_positions_that_depend_on_the_length_are_not_recorded(tiny_base, rope, recorded) -> None:
    model = tiny_base().model
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_type": rope}
    assert has_plain_attention(model, growing_cache(LlamaConfig(num_hidden_layers=2))) == recorded


@pytest.mark.parametrize("architecture", SERVED)
@pytest.mark.parametrize("steps", [RecordedSteps], indirect=True)
def test_answers_against_a_naive_loop(tiny_base, architecture, steps) -> None:  # noqa: ARG001 - a fixture
    roles = make_roles(tiny_base(architecture=architecture))
    uniforms = torch.rand(3, 2, LENGTH, generator=torch.Generator().manual_seed(3)).tolist()
    expected = [[naive(roles, PROMPTS[i], u, 0.9) for u in uniforms[i]] for i in range(3)]
    assert sample(roles, PROMPTS[:3], answers_per_prompt=2) == expected


def test_states_are_those_of_steps_on_a_growing_cache(tiny_base) -> None:
    """Also after rows were dropped, up to the last token of the capacity."""
    roles = make_roles(tiny_base("nf4"))
    polls: list[int] = []
    tokens = torch.tensor([[9, 30, 7, 41], [11, 8, 90, 3], [5, 6, 7, 8]], device=DEVICE).t()
    with generating_as(roles, Role.POLICY):
        growing, fixed = (prefill(roles.base.model, [[5, 6, 7], [8]], 0, 2, 3)[1] for _ in range(2))
        assert isinstance(growing, GrowingSteps)
        fixed = RecordedSteps(fixed.model, fixed.cache, fixed.attention, fixed.position, 3, lambda: polls.append(1))
        for t in range(3):
            rows = torch.arange(4, device=DEVICE) if t < 2 else torch.tensor([0, 3], device=DEVICE)
            if t == 2:
                for either in (growing, fixed):
                    either.keep(rows)
            torch.testing.assert_close(fixed(tokens[rows, t]), growing(tokens[rows, t]), rtol=1e-5, atol=1e-5)
            assert len(polls) == t + 1


@pytest.mark.skipif(DEVICE == "cpu", reason="only a GPU records")
def test_a_gpu_records_unless_it_is_told_not_to(tiny_base, monkeypatch) -> None:
    roles, recorded = make_roles(tiny_base()), []
    real = RecordedSteps._record
    monkeypatch.setattr(decoding.RecordedSteps, "_record", lambda steps: recorded.append(1) or real(steps))
    answers = sample(roles)
    assert recorded
    recorded.clear()
    config = roles.base.config.model_copy(update={"cuda_graphs": False})
    object.__setattr__(roles.base, "config", config)
    assert sample(roles) == answers
    assert not recorded
