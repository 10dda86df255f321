"""Number of ranked prompts that a run waits for: the same for stages, page and terminal."""

from pathlib import Path
from typing import Literal, NamedTuple

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.maths.reward_gate import POWER, expected_passes, prompts_for_power
from lowrank_rlhf.preferences.reward_tests import reward_tests

ASSUMED_ACCURACY = 0.7
"""Pair accuracy that is assumed before a reward model has been measured."""
WITHOUT_GATE = 24
"""Prompts to wait for if no stage refuses a weak reward model."""
_RANGE = (0.6, 0.8)  # of accuracies from few prompts that are believed


class RankingNeed(NamedTuple):
    """Ranked prompts that the run needs before it can resume."""

    prompts: int
    reason: Literal["setting", "power", "weak"]
    """`setting`: `rank.minimum_rankings`, or a reward model that passed; `power`: the expected outcome of the reward
    model's test; `weak`: a trained reward model failed it."""
    passes: float | None = None
    """Expected share of reward models that pass their test with `prompts`; None if one has passed or none is tested."""
    accuracy: float | None = None
    """Pair accuracy that `passes` is computed for: assumed, or near that of the reward model that failed."""
    earlier: int = 0
    """Prompts ranked in earlier rounds, which `passes` is computed with too."""

    @property
    def few(self) -> bool:
        """Return True if a reward model trained on this number of prompts often fails its test."""
        return self.passes is not None and self.passes < POWER


def needed(config: Config, run: Path, available: int) -> RankingNeed:
    """Return how many of the `available` prompts must be ranked before the run in this folder can resume.

    In a later round these are the round's own prompts; its reward model was tested on those of all rounds.
    """
    asked, gated = config.rank.minimum_rankings, "ppo" in config.stages and not config.ppo.accept_weak_reward
    if not gated:
        return RankingNeed(min(asked or WITHOUT_GATE, available), "setting")
    test = max(2, config.sample.answers_per_prompt), config.reward.held_out
    measured = next(reversed(reward_tests(run)), None)
    accuracy = min(max(round(measured.accuracy, 2), _RANGE[0]), _RANGE[1]) if measured else ASSUMED_ACCURACY
    reason: Literal["setting", "power", "weak"] = "setting"
    earlier = measured.earlier if measured else 0
    ranked = measured.ranked(config.reward.held_out) if measured else 0
    if measured and measured.weakness:
        # A model that failed where most pass was unlucky: half as many again is another try.
        wanted, reason = max(prompts_for_power(accuracy, *test), ranked + ranked // 2 + 1) - earlier, "weak"
    elif measured:
        wanted = min(asked or ranked, ranked - earlier)
    elif asked:
        wanted = asked
    else:
        wanted, reason = prompts_for_power(accuracy, *test), "power"
    prompts = min(wanted, available)
    if measured and not measured.weakness:
        return RankingNeed(prompts, reason)
    passes = expected_passes(prompts + earlier, accuracy, *test) if prompts > 1 else 0.0
    return RankingNeed(prompts, reason, passes, accuracy, earlier)
