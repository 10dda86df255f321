"""Rounds of a run side by side: a table of their figures, and the judge's score over the distance from SFT."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

from lowrank_rlhf.reports.charts import ChartFigure, chart_figure, distance_and_gold
from lowrank_rlhf.reports.format import (
    MISSING,
    Metrics,
    Table,
    finite_series,
    gold,
    number,
    percent,
    percent_bounds,
)
from lowrank_rlhf.reports.locale import Locale
from lowrank_rlhf.reports.svg.drawing import COLOURS, Chart, Line
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.results import Results, RewardResult

_COLUMNS = ("round", "rankings", "accuracy", "shift", "kept_step", "proxy", "gold", "kl", "kl_last", "win_rate")


@dataclass(frozen=True)
class RoundFigures:
    """Results and metrics of one round."""

    number: int
    results: Results
    metrics: Metrics


def read_rounds(run_dir: RunDir, results: Results) -> list[RoundFigures]:
    """Return the rounds up to this folder's, whose `results` are given; empty in the first round.

    Raises `UserError` as `RunDir.results` does.
    """
    if run_dir.number == 1:
        return []
    return [
        RoundFigures(
            each.number, results if each.number == run_dir.number else each.results(), list(each.metrics.read())
        )
        for each in run_dir.up_to_this
    ]


def rounds_table(rounds: Sequence[RoundFigures], texts: Locale) -> Table | None:
    """Return the table with a row for each round; None for a run of one round."""
    if not rounds:
        return None
    header = tuple(texts(f"rounds.{name}") for name in _COLUMNS)
    return Table(texts("rounds.title"), texts("rounds.lead"), header, tuple(_row(each) for each in rounds))


def rounds_figure(rounds: Sequence[RoundFigures], texts: Locale) -> Iterator[ChartFigure]:
    """Yield the judge's mean score over √KL with a line for each round; nothing if no judge followed the training."""
    lines = [
        Line(texts("chart.rounds.line", round=each.number), list(distance_and_gold(each.metrics).values()), colour)
        for each, colour in zip(rounds, cycle(range(COLOURS)), strict=False)
    ]
    title = texts("chart.rounds.title")
    chart = Chart(title, texts("chart.distance"), texts("chart.gold_score"), lines=lines, legend=True)
    yield from chart_figure("rounds", chart, texts("chart.rounds.hint"))


def _row(each: RoundFigures) -> tuple[str, ...]:
    results, step = each.results, each.results.ppo.best_step if each.results.ppo else None
    reward, evaluate = results.reward or RewardResult(), results.evaluate

    def kept(figure: str) -> str:
        """Return a figure of the kept policy on validation prompts."""
        return number(finite_series(each.metrics, "ppo", f"eval/{figure}").get(step)) if step is not None else MISSING

    win_rate = MISSING
    if evaluate and evaluate.win_rate is not None:
        win_rate = percent(evaluate.win_rate) + percent_bounds(evaluate.win_rate_interval)
    return (
        str(each.number),
        number(results.rank and results.rank.rankings),
        percent(reward.accuracy) + percent_bounds(reward.accuracy_interval),
        _shift(reward, each.number),
        number(step),
        *(kept(name) for name in ("score", gold(each.metrics), "kl", "kl_last")),
        win_rate,
    )


def _shift(reward: RewardResult, round_number: int) -> str:
    """Return the accuracy on the round's own answers: the last round's reward model's, then this one's."""
    own = next((found for found in reward.by_round if found.round == round_number), None)
    if own is None:
        return MISSING
    return f"{percent(own.before)} → {percent(own.accuracy)}{percent_bounds(own.interval)}"
