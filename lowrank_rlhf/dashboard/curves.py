"""Which figures of a run are drawn while it learns, and what each should do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lowrank_rlhf.dashboard.drawing import Line, chart
from lowrank_rlhf.dashboard.text import html, t
from lowrank_rlhf.reports.format import gold, series

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Curve:
    """One metric over a stage's steps. `name` is its key among the texts, `also` a second metric, drawn as dots."""

    stage: str
    metric: str
    name: str
    also: str | None = None


CURVES = (
    Curve("ppo", "objective/scores", "scores", "eval/score"),
    Curve("ppo", "objective/kl", "kl", "eval/kl"),
    Curve("ppo", "objective/entropy", "entropy"),
    Curve("ppo", "response/length_mean", "length"),
    Curve("ppo", "policy/clipfrac", "clipfrac"),
    Curve("reward", "accuracy", "accuracy"),
    Curve("reward", "loss", "reward_loss"),
    Curve("sft", "loss", "sft_loss"),
)


def figures(rows: Rows, language: str) -> str:
    """All charts that the rows have points for, the newest stage first, as HTML."""
    drawn = [frontier(rows, language), *(_curve(rows, curve, language) for curve in CURVES)]
    return "".join(drawn)


def frontier(rows: Rows, language: str) -> str:
    """Proxy (the reward model's score) and gold (the judge's) over the distance from SFT (Gao et al. 2022, fig. 1)."""
    of_judge, _ = gold(rows)
    name = "curve.gold" if of_judge == "eval/judge" else "curve.gold_second"
    found = [_finite(rows, "ppo", key) for key in ("eval/kl", "eval/score", of_judge)]
    steps = [step for step in found[0] if step in found[1]]
    if len(steps) < 2:
        return ""

    def over_distance(metric: dict[int, float]) -> list[tuple[float, float]]:
        # Sampling noise can put an estimate of a tiny KL below 0.
        return [(math.sqrt(max(found[0][step], 0.0)), metric[step]) for step in steps if step in metric]

    lines = [
        Line(t("curve.proxy", language), over_distance(found[1])),
        Line(t(name, language), over_distance(found[2]), colour="two", right=True),
    ]
    return _figure("frontier", chart(lines, t("curve.distance", language), t("curve.frontier", language)), language)


def _curve(rows: Rows, curve: Curve, language: str) -> str:
    points = series(rows, curve.stage, curve.metric)
    lines = [Line(t("curve.training", language), list(zip(*points, strict=True)))]
    if curve.also:
        dots = series(rows, curve.stage, curve.also)
        lines.append(Line(t("curve.held_out", language), list(zip(*dots, strict=True)), colour="two", dots=True))
    drawn = chart(lines, t("curve.step", language), t(f"curve.{curve.name}", language))
    return _figure(curve.name, drawn, language) if drawn else ""


def _figure(name: str, drawn: str, language: str) -> str:
    title, hint = t(f"curve.{name}", language), t(f"curve.{name}.hint", language)
    return f"<figure><b>{html(title)}</b>{drawn}<figcaption>{html(hint)}</figcaption></figure>"


def _finite(rows: Rows, stage: str, key: str) -> dict[int, float]:
    steps, values = series(rows, stage, key)
    return {step: value for step, value in zip(steps, values, strict=True) if math.isfinite(value)}
