"""Number of ranked prompts that a run waits for: the same for stages, page and terminal."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.maths.reward_gate import POWER, expected_passes, prompts_for_power
from lowrank_rlhf.run.files import read_lines

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

    @property
    def few(self) -> bool:
        """Return True if a reward model trained on this number of prompts often fails its test."""
        return self.passes is not None and self.passes < POWER


class _Measured(NamedTuple):
    """Outcome of the last reward model's test."""

    prompts: int
    accuracy: float
    weak: bool


def needed(config: Config, run: Path, available: int) -> RankingNeed:
    """Return how many of the `available` prompts must be ranked before the run in this folder can resume."""
    asked, gated = config.rank.minimum_rankings, "ppo" in config.stages and not config.ppo.accept_weak_reward
    if not gated:
        return RankingNeed(min(asked or WITHOUT_GATE, available), "setting")
    test = max(2, config.sample.answers_per_prompt), config.reward.held_out
    measured = _last_measured(run, config.reward.held_out)
    accuracy = min(max(round(measured.accuracy, 2), _RANGE[0]), _RANGE[1]) if measured else ASSUMED_ACCURACY
    reason: Literal["setting", "power", "weak"] = "setting"
    if measured and measured.weak:
        # A model that failed where most pass was unlucky: half as many again is another try.
        wanted, reason = max(prompts_for_power(accuracy, *test), measured.prompts + measured.prompts // 2 + 1), "weak"
    elif measured:
        wanted = min(asked or measured.prompts, measured.prompts)
    elif asked:
        wanted = asked
    else:
        wanted, reason = prompts_for_power(accuracy, *test), "power"
    prompts = min(wanted, available)
    if measured and not measured.weak:
        return RankingNeed(prompts, reason)
    return RankingNeed(prompts, reason, expected_passes(prompts, accuracy, *test) if prompts > 1 else 0.0)


def _last_measured(run: Path, held_out: float) -> _Measured | None:
    """Read the last test from `events.jsonl`, which survives a redone stage."""
    found = None
    for line in read_lines(run / "events.jsonl"):
        if '"measured"' in line:
            with suppress(ValueError, KeyError, TypeError):  # truncated by a crash, or of another kind
                row = json.loads(line)
                weak = row["weakness"] is not None if "weakness" in row else row["interval"][0] <= 0.5
                found = _Measured(round(row["prompts"] / (1 - held_out)), float(row["accuracy"]), weak)
    return found
