"""The report's plots as inline SVG. Colours are CSS variables, so that one drawing serves light and dark pages."""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowrank_rlhf.reports.format import Metrics, Summaries, gold, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Matplotlib knows no CSS: it draws in these placeholder colours, which `_inline` replaces in the SVG.
_INK, _GRID, _ONE, _TWO = "#010101", "#020202", "#030303", "#040404"
_CSS = {_INK: "var(--soft)", _GRID: "var(--line)", _ONE: "var(--one)", _TWO: "var(--two)"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class Plot:
    """One drawing: `svg` is safe markup, title and caption are plain text."""

    title: str
    caption: str
    svg: str


def _inline(svg: str) -> str:
    """Only the `<svg>` element, without names, metadata and ids that would clash or point elsewhere."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'^<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg)
    for placeholder, variable in _CSS.items():
        svg = svg.replace(placeholder, variable)
    return re.sub(r"\s*\n\s*", "\n", svg)


@contextmanager
def _drawing(into: list[Plot], title: str, caption: str, x: str, y: str) -> "Iterator[Axes]":
    """Axes to draw in; the finished plot is appended. Small, so that the lettering is readable on a phone."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        yield axes
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    into.append(Plot(title, caption, _inline(buffer.getvalue())))


def _finite(values: Sequence[float]) -> bool:
    return any(map(math.isfinite, values))


@dataclass(frozen=True)
class _Curve:
    """One metric over a stage's steps; `also` is a second metric in the same units, drawn as points."""

    stage: str
    key: str
    title: str
    caption: str
    label: str
    also: str | None = None


_CURVES = (
    _Curve("sft", "loss", "Fine-tuning: loss", "Should fall and then level off.", "loss, nats per token"),
    _Curve("reward", "loss", "Reward model: loss", "0.69 is guessing; lower is better.", "loss, nats"),
    _Curve(
        "reward", "accuracy", "Reward model: training accuracy", "Share of training pairs ordered rightly; 0.5 is "
        "guessing.", "accuracy",
    ),
    _Curve(
        "ppo", "objective/scores", "Policy: score", "The reward model's score of the sampled answers. Should rise.",
        "score",
    ),
    _Curve(
        "ppo", "objective/kl", "Policy: distance from SFT",
        "KL per answer: line in training, dots on held-out prompts. Should rise slowly and never stay below 0.",
        "KL, nats per answer", also="eval/kl",
    ),
    _Curve(
        "ppo", "objective/entropy", "Policy: entropy",
        "How varied the choice of words is. A collapse means repetition.", "entropy, nats per token",
    ),
    _Curve(
        "ppo", "response/length_mean", "Policy: answer length", "A steep rise means that length alone is rewarded.",
        "tokens",
    ),
    _Curve(
        "ppo", "dpo/accuracy", "Policy: comparisons in order",
        "Share of the step's comparisons whose better answer it has come to prefer more than SFT does. Should rise.",
        "share of comparisons",
    ),
    _Curve(
        "ppo", "policy/clipfrac", "Policy: clipped share", "Tokens outside the trust region. Should stay below 0.2.",
        "share of tokens",
    ),
)  # fmt: skip


def _curves(into: list[Plot], metrics: Metrics, stage: str, best: int | None = None) -> None:
    """The stage's curves; `best` marks a step."""
    for curve in (curve for curve in _CURVES if curve.stage == stage):
        steps, values = series(metrics, curve.stage, curve.key)
        if not _finite(values):
            continue
        with _drawing(into, curve.title, curve.caption, "step", curve.label) as axes:
            axes.plot(steps, values, color=_ONE, marker="o" if len(steps) == 1 else None)
            if curve.also:
                axes.plot(*series(metrics, curve.stage, curve.also), "o", color=_TWO)
            if best is not None:
                axes.axvline(best, color=_INK, linestyle=":", linewidth=1)
                axes.annotate("best", (best, 1), (2, -8), xycoords=("data", "axes fraction"),
                              textcoords="offset points", fontsize=8)  # fmt: skip


def _accuracy(into: list[Plot], reward: Mapping[str, Any]) -> None:
    """Held-out accuracy beside the length baseline, each with its 95 % interval."""
    caption = "Share of held-out pairs ordered rightly, with 95 % intervals. The dotted line is guessing."
    with _drawing(into, "Reward model: accuracy", caption, "", "share of held-out pairs") as axes:
        for place, (key, colour) in enumerate((("accuracy", _ONE), ("longer_wins", _TWO))):
            value, interval = reward[key], reward.get(f"{key}_interval")
            axes.bar(place, value, width=0.5, color=colour, alpha=0.75)
            if interval and None not in interval:
                axes.vlines(place, *interval, color=_INK, linewidth=1.6)
        axes.axhline(0.5, color=_INK, linestyle=":", linewidth=1)
        axes.set_xticks([0, 1], ["reward model", "the longer one wins"])
        axes.set(xlim=(-0.6, 1.6), ylim=(0, 1))


def _calibration(into: list[Plot], bars: Sequence[Mapping[str, Any]]) -> None:
    caption = "How often the reward model is right against how sure it is. Dots on the dotted line: it knows itself."
    with _drawing(into, "Reward model: calibration", caption, "predicted probability", "share that came true") as axes:
        axes.plot([0, 1], [0, 1], color=_INK, linestyle=":", linewidth=1)
        probability, accuracy = ([bar[key] for bar in bars] for key in ("probability", "accuracy"))
        axes.plot(probability, accuracy, color=_ONE)
        most = max(bar["count"] for bar in bars)
        axes.scatter(
            probability, accuracy, s=[15 + 75 * bar["count"] / most for bar in bars], color=_ONE, clip_on=False
        )
        axes.set(xlim=(min(0.5, *probability), 1), ylim=(0, 1.02))


def _margins(into: list[Plot], margins: Sequence[float]) -> None:
    caption = "Score of the preferred answer minus the other's, held-out pairs. Right of 0 the model agrees."
    with _drawing(into, "Reward model: margins", caption, "margin", "pairs") as axes:
        axes.hist(margins, bins=min(30, max(5, round(len(margins) ** 0.5))), color=_ONE, alpha=0.75)
        axes.axvline(0, color=_INK, linestyle=":", linewidth=1)


def _frontier(into: list[Plot], metrics: Metrics, judge: str) -> None:
    """Proxy and gold over sqrt(KL) (Gao et al. 2022, fig. 1); two axes, since their units differ."""
    of_judge, role = gold(metrics)
    found = [dict(zip(*series(metrics, "ppo", key), strict=True)) for key in ("eval/kl", "eval/score", of_judge)]
    steps = [step for step in found[0] if all(math.isfinite(metric.get(step, math.nan)) for metric in found)]
    if not steps:
        return
    # Sampling noise can put an estimate of a tiny KL below 0.
    distance = [math.sqrt(max(found[0][step], 0.0)) for step in steps]
    caption = (
        f"Blue circles, left axis: the reward model's score (proxy). Orange squares, right axis: {judge} (gold). "
        "Where blue rises and orange falls, the policy exploits the reward model."
    )
    x = "distance from SFT: √KL, √nats"
    with _drawing(into, "Proxy and gold over distance", caption, x, "● reward model (proxy)") as left:
        right = left.twinx()
        for axes, metric, colour, marker in ((left, found[1], _ONE, "o"), (right, found[2], _TWO, "s")):
            axes.plot(distance, [metric[step] for step in steps], color=colour, marker=marker)
            axes.tick_params(axis="y", colors=colour)
            axes.yaxis.label.set_color(colour)
        right.set_ylabel(f"■ {role} (gold)")
        right.grid(False)
        right.spines["right"].set_visible(True)


def draw(metrics: Metrics, summaries: Summaries, judge: str) -> list[Plot]:
    """Every plot that the metrics and summaries have figures for; `judge` names the gold score in words."""
    plots: list[Plot] = []
    reward = summaries.get("reward", {})
    _frontier(plots, metrics, judge)
    _curves(plots, metrics, "ppo", summaries.get("ppo", {}).get("best_step"))
    _curves(plots, metrics, "reward")
    if reward.get("accuracy") is not None and reward.get("longer_wins") is not None:
        _accuracy(plots, reward)
    if reward.get("reliability"):
        _calibration(plots, reward["reliability"])
    if reward.get("margins"):
        _margins(plots, reward["margins"])
    _curves(plots, metrics, "sft")
    return plots
