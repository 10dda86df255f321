"""What the report is made of: metrics, figures in words, and tables that HTML, Markdown and the terminal share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowrank_rlhf.preferences.judges.loading import ENDPOINT

Metrics = Sequence[Mapping[str, Any]]
Summaries = Mapping[str, Mapping[str, Any]]

DISTINCT, OPENER = "distinct-2", "commonest opener's share"
"""Names of rows in the table of before and after that alarms read."""
ENDPOINT_PREFIX = f"{ENDPOINT}:"
"""Of a judge's name, before the language model's."""


@dataclass(frozen=True)
class Table:
    """A titled table of plain text; `lead` is a sentence above it."""

    title: str
    lead: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def series(metrics: Metrics, stage: str, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric in order of steps; null is nan, and the last row of a repeated step counts."""
    points = {row["step"]: row[key] for row in metrics if row.get("stage") == stage and key in row}
    steps = sorted(points)
    return steps, [float("nan") if points[step] is None else float(points[step]) for step in steps]


def algorithm(summaries: Summaries) -> str:
    """What made the policy, in capitals; runs from before there was a choice were made by PPO."""
    return str(summaries.get("ppo", {}).get("algorithm", "ppo")).upper()


_GOLD = {"judge": "judge", "second_judge": "second judge"}


def gold(metrics: Metrics) -> tuple[str, str]:
    """The metric that holds the judge's score in PPO's evaluations, and what that judge is called in the run.

    It is the second judge where no program ranked the answers.
    """
    found = next((name for name in _GOLD if any(f"eval/{name}" in row for row in metrics)), "judge")
    return f"eval/{found}", _GOLD[found]


def number(value: object) -> str:
    """A figure for people: three digits or so, a dash for what is missing, text as it is."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    if 0 < abs(value) < 0.005:
        return f"{value:.2g}"
    return f"{value:.{0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2}f}"


def percent(share: float | None) -> str:
    """A share of 1 as whole per cent."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.0f} %"


def percent_interval(interval: Sequence[float | None] | None) -> str:
    """`(95 % interval 74 to 91 %)` with a space before it, or nothing where there is no interval."""
    if not interval or any(end is None or not math.isfinite(end) for end in interval):
        return ""
    low, high = (100 * float(end) for end in interval if end is not None)
    return f" (95 % interval {low:.0f} to {high:.0f} %)"


def number_interval(interval: Sequence[float | None] | None) -> str:
    """The same for a figure that is no share."""
    return f" (95 % interval {number(interval[0])} to {number(interval[1])})" if interval else ""


def judge_in_words(name: str | None) -> str:
    """A judge's name in a sentence. That it is a simulation or a language model is never left out."""
    if name is None:
        return "the reward model"
    if name.startswith(ENDPOINT_PREFIX):
        return f"the language model “{name.removeprefix(ENDPOINT_PREFIX)}”"
    return "the simulated annotator" if name == "simulated-annotator" else f"the judge “{name}”"
