"""Tests of a run's reward models, in its `events.jsonl`: written by stage `reward`, read by page, terminal and run."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, model_validator

from lowrank_rlhf.maths.reward_gate import Weakness
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import read_lines

_KIND, _STAGE = "measured", "reward"


class CurvePoint(BaseModel):
    """Accuracy of reward heads fitted to so many ranked prompts, with its 95 % interval."""

    model_config = ConfigDict(frozen=True)

    prompts: NonNegativeInt
    accuracy: float
    interval: tuple[float, float]


class LearningCurve(BaseModel):
    """Accuracy of the reward head by number of training prompts, and the gain to expect from `more` ranked ones."""

    model_config = ConfigDict(frozen=True)

    points: tuple[CurvePoint, ...]
    more: NonNegativeInt
    gain: float
    gain_interval: tuple[float, float]

    @property
    def values(self) -> dict[str, str]:
        """Number of further rankings, and the gain in points with its interval, for sentences."""
        gain, low, high = (f"{100 * share:.1f}" for share in (self.gain, *self.gain_interval))
        return {"more": str(self.more), "gain": gain, "low": low, "high": high}

    @property
    def shown(self) -> bool:
        """True if the gain is shown to be above zero."""
        return self.gain_interval[0] > 0

    def in_words(self) -> str:
        """Return the gain as a sentence for the terminal, without a full stop."""
        doubt = "" if self.shown else ", not shown to be above zero"
        return (
            "{more} more rankings would gain about {gain} percentage points of accuracy on held-out pairs "
            "({low} to {high}){doubt}"
        ).format(**self.values, doubt=doubt)


class RewardTest(BaseModel):
    """Test of one reward model on held-out comparisons."""

    model_config = ConfigDict(frozen=True)

    prompts: NonNegativeInt
    """Ranked prompts that it was trained on."""
    held_out: NonNegativeInt | None = None
    """Ranked prompts that it was tested on; None in events of older versions."""
    earlier: NonNegativeInt = 0
    """Those of both that were ranked in earlier rounds only."""
    accuracy: float
    interval: tuple[float, float]
    weakness: Weakness | None
    """Verdict of the test."""
    curve: LearningCurve | None = None
    """None if no head was fitted, and in events of older versions."""

    @model_validator(mode="before")
    @classmethod
    def _older(cls, row: Any) -> Any:
        """Take the interval as the verdict of an older version's event, which has none."""
        if isinstance(row, dict) and "weakness" not in row:
            return {**row, "weakness": "chance" if row["interval"][0] <= 0.5 else None}
        return row

    def ranked(self, held_out: float) -> int:
        """Return the number of ranked prompts; `held_out` is their held-out share, for events of older versions."""
        return round(self.prompts / (1 - held_out)) if self.held_out is None else self.prompts + self.held_out


def record_reward_test(run_dir: RunDir, test: RewardTest) -> None:
    """Append the test to the events, which survive a redone stage: accuracy can be plotted over rankings."""
    run_dir.event(_KIND, stage=_STAGE, **test.model_dump(exclude=None if test.curve else {"curve"}))


def reward_tests(run: Path) -> tuple[RewardTest, ...]:
    """Return the tests of all reward models that the run has trained, oldest first."""
    found = []
    for line in read_lines(run / "events.jsonl"):
        if _KIND in line:
            with suppress(ValueError, LookupError, TypeError):  # cut short by a crash, or of another kind
                row = json.loads(line)
                if (row["kind"], row["stage"]) == (_KIND, _STAGE):
                    found.append(RewardTest.model_validate(row))
    return tuple(found)
