"""Curves of several runs overlaid: the catalogue of `charts.py` with a line per run."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from lowrank_rlhf.reports.charts import (
    CURVES,
    ChartFigure,
    Curve,
    chart_figure,
    distance_and_gold,
    metric_points,
    reward_names,
)
from lowrank_rlhf.reports.format import Metrics
from lowrank_rlhf.reports.locale import Locale
from lowrank_rlhf.reports.svg.drawing import Chart, Guide, Line, Point

_LONGEST = 44
"""Characters of a run's name that fit into a legend."""
_CHANCE = (Guide((None, None), (0.5, 0.5)),)


def overlaid_figures(runs: Mapping[str, Metrics], texts: Locale) -> Iterator[ChartFigure]:
    """Yield each chart that any of the runs has points for. A run has the same colour in all of them.

    Args:
        runs: the rows of metrics.jsonl by the run's name.
        texts: of the reader's language.
    """
    step, title = texts("chart.step"), texts("overlay.frontier.title")
    frontier = _lines(runs, lambda metrics: _in_order(distance_and_gold(metrics)))
    chart = Chart(title, texts("chart.distance"), texts("chart.gold_score"), lines=frontier, legend=True)
    yield from chart_figure("frontier", chart, texts("overlay.frontier.hint"))
    for key, judge in (("win_rate", "chart.win_rates.gold"), ("second_win_rate", "chart.second_judge")):
        title = texts("overlay.judged", title=texts("chart.win_rates.title"), judge=texts(judge))
        lines = _over_steps(runs, "ppo", f"eval/{key}")
        chart = Chart(
            title, step, texts("chart.win_rates.unit"), lines=lines, guides=_CHANCE, y_range=(0.0, 1.0), legend=True
        )
        yield from chart_figure(key, chart)
    for curve in CURVES:
        yield from _both(curve, runs, texts(f"chart.{curve.id}.title"), texts(f"chart.{curve.id}.unit"), texts)
        for name in _own_rewards(runs) if curve.id == "scores" else ():
            own = Curve(f"reward_{name}", "ppo", f"reward/{name}", f"eval/reward/{name}")
            yield from _both(
                own, runs, texts("chart.own_reward.title", name=name), texts("chart.own_reward.unit"), texts
            )


def _both(curve: Curve, runs: Mapping[str, Metrics], title: str, unit: str, texts: Locale) -> Iterator[ChartFigure]:
    """Yield the chart of the training steps, and the one of the validation prompts."""
    lines = _over_steps(runs, curve.stage, curve.metric)
    yield from chart_figure(curve.id, Chart(title, texts("chart.step"), unit, lines=lines, legend=True))
    if curve.held_out:
        title, lines = texts("overlay.held_out", title=title), _over_steps(runs, curve.stage, curve.held_out)
        yield from chart_figure(
            f"{curve.id}_held_out", Chart(title, texts("chart.step"), unit, lines=lines, legend=True)
        )


def _over_steps(runs: Mapping[str, Metrics], stage: str, key: str) -> list[Line]:
    return _lines(runs, lambda metrics: metric_points(metrics, stage, key))


def _lines(runs: Mapping[str, Metrics], points: Callable[[Metrics], Sequence[Point]]) -> list[Line]:
    return [Line(_short(name), points(metrics), colour=index) for index, (name, metrics) in enumerate(runs.items())]


def _short(name: str) -> str:
    """Return the end of a long name: names of a sweep's runs begin alike."""
    return name if len(name) <= _LONGEST else f"…{name[-_LONGEST:]}"


def _in_order(found: Mapping[int, Point]) -> list[Point]:
    return [found[step] for step in sorted(found)]


def _own_rewards(runs: Mapping[str, Metrics]) -> list[str]:
    return list(dict.fromkeys(name for metrics in runs.values() for name in reward_names(metrics)))
