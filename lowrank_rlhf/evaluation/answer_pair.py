"""Pairs of answers under comparison: a baseline's and a candidate's answer to one prompt. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lowrank_rlhf.run.records import Prompt, Sample

REWARD_MODEL = "reward model"
"""Name of the reward model among the names of judges."""
REWARDS = "rewards"
"""Name of the sum of `ppo.rewards` among the names of judges."""
SCORE = "score"
"""Key of the verdicts by the reward model, or by the sum of the rewards."""


def reward_column(name: str) -> str:
    """Return the key of the verdicts by one of `ppo.rewards`."""
    return f"reward_{name}"


class Sides(NamedTuple):
    """Names of the two models in rows and tables."""

    baseline: str
    candidate: str


STAGE_SIDES = Sides("sft", "policy")
COMMAND_SIDES = Sides("left", "right")


@dataclass(frozen=True)
class Verdict:
    """Verdict of a judge, or of the reward model, on one pair of answers."""

    win: float
    """1 if the candidate's answer is preferred, 0 if the baseline's is, 0.5 for a tie."""
    scores: tuple[float, float] | None = None
    """Scores of the baseline's and the candidate's answer; None if scores compare within one call only."""

    def columns(self, key: str, sides: Sides) -> dict[str, Any]:
        """Return the verdict as columns of a row: `{key}_{side}` with the scores, or `{key}_prefers`."""
        if self.scores:
            return {f"{key}_{side}": score for side, score in zip(sides, self.scores, strict=True)}
        preferred = {1.0: sides.candidate, 0.0: sides.baseline}.get(self.win, "tie")
        return {f"{key}_prefers": preferred}


@dataclass(frozen=True)
class AnswerPair:
    """Two models' answers to one prompt, with everything measured about them."""

    prompt: Prompt
    baseline: Sample
    candidate: Sample
    kl: float
    """log candidate - log baseline of the candidate's answer, nats."""
    verdicts: Mapping[str, Verdict]
    """By key: `score`, `reward_NAME` for each reward in it, `judge` and `second` for judges."""
    spreads: tuple[float, float] | None = None
    """Standard deviation of the reward model's members on both answers; None with one."""

    def row(self, sides: Sides, lengths: bool = False) -> dict[str, Any]:
        """Return the pair as a row for a JSON file, with `lengths` also tokens and end of each answer."""
        row: dict[str, Any] = {"prompt_id": self.prompt.id, "prompt": self.prompt.conversation}
        for side, sample in zip(sides, (self.baseline, self.candidate), strict=True):
            row[side] = sample.text
            if lengths:
                row |= {f"tokens_{side}": len(sample.tokens or ()), f"finished_{side}": sample.finished}
        row |= self.verdicts[SCORE].columns(SCORE, sides) if SCORE in self.verdicts else {}
        row |= {f"spread_{side}": spread for side, spread in zip(sides, self.spreads or (), strict=False)}
        row["kl"] = self.kl
        for key, verdict in self.verdicts.items():
            row |= verdict.columns(key, sides) if key != SCORE else {}
        return row
