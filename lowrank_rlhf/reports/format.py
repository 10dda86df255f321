"""Building blocks of a report: metric series, figures for people, and tables that HTML, Markdown and terminal share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lowrank_rlhf.evaluation.answer_pair import REWARD_MODEL, REWARDS
from lowrank_rlhf.evaluation.run_judges import JudgeRole
from lowrank_rlhf.preferences.judges.loading import ENDPOINT, SIMULATED
from lowrank_rlhf.reports.locale import ENGLISH, Locale
from lowrank_rlhf.run.results import Results

Metrics = Sequence[Mapping[str, Any]]
"""Rows of metrics.jsonl."""

ENDPOINT_PREFIX = f"{ENDPOINT}:"
"""Prefix of the name of a judge that is a language model."""
MISSING = "–"

ColumnKind = Literal["text", "note", "verdict"]


@dataclass(frozen=True)
class Table:
    """A titled table of plain text; `lead` is a sentence above it."""

    title: str
    lead: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    kinds: tuple[ColumnKind, ...] = ()
    """Style of each column; empty for text throughout."""
    failed: frozenset[int] = frozenset()
    """Indices of rows with a failed verdict."""


def by_step(metrics: Metrics, stage: str, key: str) -> dict[int, Any]:
    """Return one metric by step; the last row of a step counts, and a damaged one, without its step, is left out."""
    rows = (row for row in metrics if row.get("stage") == stage and key in row)
    return {row["step"]: row[key] for row in rows if type(row.get("step")) is int}


def series(metrics: Metrics, stage: str, key: str) -> tuple[list[int], list[float]]:
    """Return steps and values of one metric, sorted by step; null becomes nan, and what is no number is left out."""
    found = {step: math.nan if value is None else value for step, value in by_step(metrics, stage, key).items()}
    points = {step: float(value) for step, value in found.items() if isinstance(value, int | float)}
    steps = sorted(points)
    return steps, [points[step] for step in steps]


def finite_series(metrics: Metrics, stage: str, key: str) -> dict[int, float]:
    """Return the metric's finite values by step, in order."""
    steps, values = series(metrics, stage, key)
    return {step: value for step, value in zip(steps, values, strict=True) if math.isfinite(value)}


def algorithm(results: Results) -> str:
    """Return the algorithm that made the policy, in capitals; PPO before version 0.1 had a choice."""
    return (results.ppo.algorithm if results.ppo else "ppo").upper()


def weight_key(algorithm: str) -> str:
    """Return the config key of the weight that keeps the policy near SFT."""
    return "ppo.kl_coef" if algorithm.upper() == "PPO" else "align.beta"


def gold(metrics: Metrics) -> JudgeRole:
    """Return the judge that followed training (`eval/<role>`): the second one if no program ranked."""
    known = [role for role in get_args(JudgeRole) if any(f"eval/{role}" in row for row in metrics)]
    role: JudgeRole = known[0] if known else "judge"
    return role


def number(value: object, texts: Locale = ENGLISH) -> str:
    """Format a figure with about three digits; a dash for a missing one, text unchanged."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, bool):
        return texts("yes" if value else "no")
    if not isinstance(value, float):
        return str(value)
    if 0 < abs(value) < 0.005:
        return f"{value:.2g}"
    return f"{value:.{0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2}f}"


def percent(share: float | None) -> str:
    """Format a share of 1 as whole per cent."""
    return MISSING if share is None or not math.isfinite(share) else f"{100 * share:.0f} %"


Bounds = Sequence[float | None] | None


def percent_interval(interval: Bounds, texts: Locale = ENGLISH) -> str:
    """Format ` (95 % interval 74 to 91 %)`; empty without an interval."""
    if (known := _known(interval)) is None:
        return ""
    return texts("interval.percent", low=f"{100 * known[0]:.0f}", high=f"{100 * known[1]:.0f}")


def percent_bounds(interval: Bounds) -> str:
    """Format ` [74, 91]` for a table whose heading names the interval; empty without one."""
    known = _known(interval)
    return f" [{100 * known[0]:.0f}, {100 * known[1]:.0f}]" if known else ""


def number_bounds(interval: Bounds) -> str:
    """Format ` [4.10, 5.20]` for a table whose heading names the interval; empty without one."""
    known = _known(interval)
    return f" [{number(known[0])}, {number(known[1])}]" if known else ""


def points(difference: float | None) -> str:
    """Format a difference of two shares as signed percentage points, such as `+8.2`."""
    return MISSING if difference is None or not math.isfinite(difference) else f"{100 * difference:+.1f}"


def points_interval(interval: Bounds, texts: Locale = ENGLISH) -> str:
    """Format ` (95 % interval -1.2 to +8.2)`; empty without an interval."""
    if (known := _known(interval)) is None:
        return ""
    return texts("interval.number", low=points(known[0]), high=points(known[1]))


def points_bounds(interval: Bounds) -> str:
    """Format ` [-1.2, +8.2]` for a table whose heading names the interval; empty without one."""
    known = _known(interval)
    return f" [{points(known[0])}, {points(known[1])}]" if known else ""


def number_interval(interval: Bounds, texts: Locale = ENGLISH) -> str:
    """Format ` (95 % interval 4.10 to 5.20)`; empty without an interval."""
    if (known := _known(interval)) is None:
        return ""
    return texts("interval.number", low=number(known[0]), high=number(known[1]))


def _known(interval: Bounds) -> tuple[float, float] | None:
    """Return the bounds where both are finite."""
    finite = [float(bound) for bound in interval or () if bound is not None and math.isfinite(bound)]
    return (finite[0], finite[1]) if len(finite) == 2 else None


def judge_label(name: str | None, texts: Locale = ENGLISH) -> str:
    """Name a judge, the reward model or the sum of the rewards in a table."""
    if name == REWARDS:
        return texts("judge.own_rewards")
    return texts("judge.own") if name in (None, REWARD_MODEL) else str(name)


def judge_in_words(name: str | None, texts: Locale = ENGLISH) -> str:
    """Name a judge in a sentence; a simulated annotator and a language model are always identified as such."""
    if name is None:
        return texts("judge.reward_model")
    if name == REWARDS:
        return texts("judge.rewards")
    if name.startswith(ENDPOINT_PREFIX):
        return texts("judge.language_model", name=name.removeprefix(ENDPOINT_PREFIX))
    return texts("judge.simulated") if name in SIMULATED else texts("judge.named", name=name)
