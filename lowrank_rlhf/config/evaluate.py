"""Settings of the final evaluation."""

from typing import Annotated

from pydantic import Field, NonNegativeInt

from lowrank_rlhf.config.section import Count, Section


class EvaluateConfig(Section):
    """Comparison of SFT model and policy on test prompts."""

    second_judge: str | None = "plain-language"
    """Judge that nothing was tuned on, reported next to the first; same values as `rank.judge`. The evaluations during
    training use it too, unless it is `endpoint`."""
    answers_per_prompt: Count = 1
    """Answers of each model to each test prompt; more narrow the intervals and cost time in proportion."""
    yardstick_prompts: NonNegativeInt = 32
    """Test prompts, the first ones, for yardsticks: greedy answers of SFT model, policy and base, and best-of-n from
    SFT (n at most 8). The report shows greedy answers first. 0 saves their time and requests to an `endpoint`."""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 10_000
    """Bootstrap resamples of the prompts per 95 % interval."""
