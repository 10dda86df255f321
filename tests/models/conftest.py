"""Fixtures of the models' tests."""

import pytest


@pytest.fixture
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """Run the test on one kind of decoding steps. On a CPU no graph is recorded; all else is the same."""
    from lowrank_rlhf.models import decoding, generation
    from lowrank_rlhf.models.decoding import RecordedSteps

    if request.param is RecordedSteps:
        prefill = decoding.prefill

        def recorded(model, prompts, pad, repeats, more, poll):
            states, steps = prefill(model, prompts, pad, repeats, more)
            return states, RecordedSteps(model, steps.cache, steps.attention, steps.position, more, poll)

        monkeypatch.setattr(generation, "prefill", recorded)
    return request.param
