"""The catalogue of a run's charts, for report, page and sweep; titles and hints by chart id are in `locales/`."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

from lowrank_rlhf.evaluation.run_judges import JudgeRole
from lowrank_rlhf.reports.format import Metrics, finite_series, gold, judge_in_words, series
from lowrank_rlhf.reports.locale import Locale
from lowrank_rlhf.reports.svg.drawing import Chart, ChartBar, Guide, Line, Point, draw, figures_csv
from lowrank_rlhf.run.results import Results, RewardResult
from lowrank_rlhf.run.results.parts import ReliabilityRow


@dataclass(frozen=True)
class ChartFigure:
    """A chart with its texts: `svg` is safe markup, title and hint are plain text."""

    id: str
    title: str
    hint: str
    svg: str
    csv: str
    """Figures of the curves; empty for a chart of bars."""

    @property
    def csv_link(self) -> str:
        """Return an address that holds the CSV itself, so that a report needs no other file."""
        return f"data:text/csv;charset=utf-8,{quote(self.csv, safe=',')}" if self.csv else ""


def chart_figure(name: str, chart: Chart, hint: str = "", title: str | None = None) -> Iterator[ChartFigure]:
    """Yield the chart with its texts, or nothing where it has no points."""
    if svg := draw(chart):
        yield ChartFigure(name, chart.label if title is None else title, hint, svg, figures_csv(chart))


def of_round(figures: Iterable[ChartFigure], number: int, texts: Locale) -> Iterator[ChartFigure]:
    """Yield the figures; those of a later round with its number in title and id."""
    for figure in figures:
        title = texts("chart.of_round", title=figure.title, round=number)
        yield figure if number == 1 else replace(figure, id=in_round(figure.id, number), title=title)


def in_round(figure: str, number: int) -> str:
    """Return the id of a figure of a round."""
    return figure if number == 1 else f"round-{number}-{figure}"


@dataclass(frozen=True)
class Curve:
    """One metric over a stage's steps, and the same quantity on held-out prompts, drawn as dots."""

    id: str
    stage: str
    metric: str
    held_out: str | None = None


CURVES = (
    Curve("scores", "ppo", "objective/scores", "eval/score"),
    Curve("score_spread", "ppo", "score_spread", "eval/score_spread"),
    Curve("kl", "ppo", "objective/kl", "eval/kl"),
    Curve("entropy", "ppo", "objective/entropy"),
    Curve("length", "ppo", "response/length_mean"),
    Curve("dpo_accuracy", "ppo", "dpo/accuracy"),
    Curve("clip_fraction", "ppo", "policy/clipfrac"),
    Curve("reward_loss", "reward", "loss"),
    Curve("reward_accuracy", "reward", "accuracy"),
    Curve("sft_loss", "sft", "loss"),
)
"""Every curve, in the order in which they are shown."""


def run_figures(metrics: Metrics, results: Results, texts: Locale) -> list[ChartFigure]:
    """Return every chart that a run has data for, the latest stage first."""
    followed = (results.ppo and results.ppo.gold) or (results.evaluate and results.evaluate.judge)
    second = results.ppo and results.ppo.second_judge
    best = results.ppo.best_step if results.ppo else None
    curves = list(curve_figures(metrics, texts, best, followed or None, second or None))
    held_out = list(_reward_figures(results.reward, texts)) if results.reward else []
    before = [figure for figure in curves if figure.id != "sft_loss"]
    return [*before, *held_out, *(figure for figure in curves if figure.id == "sft_loss")]


def curve_figures(
    metrics: Metrics,
    texts: Locale,
    best_step: int | None = None,
    judge: str | None = None,
    second_judge: str | None = None,
) -> Iterator[ChartFigure]:
    """Yield the frontier and the curves that the metrics have points for.

    Args:
        metrics: the rows of metrics.jsonl.
        texts: of the reader's language.
        best_step: the policy's best step, to be marked.
        judge: name of the gold judge that followed the training.
        second_judge: name of the second judge that followed it too.
    """
    role = gold(metrics)
    yield from _frontier("frontier", metrics, role, texts, _in_words(judge, texts))
    if role == "judge":
        yield from _frontier("frontier_second", metrics, "second_judge", texts, _in_words(second_judge, texts))
    yield from _win_rates(metrics, texts, _in_words(judge, texts), _in_words(second_judge, texts))
    own = reward_names(metrics)
    for curve in CURVES:
        hint = texts("chart.scores.hint.rewards") if own and curve.id == "scores" else None
        title, unit = texts(f"chart.{curve.id}.title"), texts(f"chart.{curve.id}.unit")
        yield from _figure(curve.id, texts, _curve(curve, metrics, title, unit, best_step, texts), hint)
        for name in own if curve.id == "scores" else ():
            yield from _own_reward(name, metrics, best_step, texts)


def reward_names(metrics: Metrics) -> list[str]:
    """Return the names of the rewards in `ppo.rewards`, from their curves; empty for the reward model alone."""
    prefix = "reward/"
    keys = dict.fromkeys(key for row in metrics if row.get("stage") == "ppo" for key in row if key.startswith(prefix))
    return [key.removeprefix(prefix) for key in keys]


def _own_reward(name: str, metrics: Metrics, best_step: int | None, texts: Locale) -> Iterator[ChartFigure]:
    """Yield the curve of one reward, before shift, scale, clip and weight."""
    curve = Curve(f"reward_{name}", "ppo", f"reward/{name}", f"eval/reward/{name}")
    title = texts("chart.own_reward.title", name=name)
    chart = _curve(curve, metrics, title, texts("chart.own_reward.unit"), best_step, texts)
    yield from chart_figure(curve.id, chart, texts("chart.own_reward.hint", name=name))


def _curve(curve: Curve, metrics: Metrics, title: str, unit: str, best_step: int | None, texts: Locale) -> Chart:
    lines = [Line(texts("chart.training"), metric_points(metrics, curve.stage, curve.metric))]
    if curve.held_out:
        held_out = metric_points(metrics, curve.stage, curve.held_out)
        lines.append(Line(texts("chart.held_out"), held_out, colour=1, dots=True))
    best = [Guide((best_step, best_step), (None, None), texts("chart.best"))]
    marked = curve.stage == "ppo" and best_step is not None
    return Chart(title, texts("chart.step"), unit, lines=lines, guides=best if marked else ())


def distance_and_gold(metrics: Metrics) -> dict[int, Point]:
    """Return √KL and the judge's mean score of each evaluation of PPO, by step (Gao et al. 2022, figure 1)."""
    return _distance_and_score(metrics, gold(metrics))


def _distance_and_score(metrics: Metrics, role: JudgeRole) -> dict[int, Point]:
    distance = _distance(metrics)
    judged = finite_series(metrics, "ppo", f"eval/{role}")
    return {step: (distance[step], judged[step]) for step in distance if step in judged}


def sweep_chart(label: str, lines: Sequence[Line], texts: Locale) -> Chart:
    """Return the gold score over the distance for the runs of a sweep, with a legend."""
    return Chart(
        label,
        texts("chart.distance"),
        texts("chart.gold_score"),
        lines=lines,
        legend=True,
        size=(720, 420),
    )


def _distance(metrics: Metrics) -> dict[int, float]:
    # Sampling noise can put an estimate of a tiny KL below 0.
    return {step: math.sqrt(max(kl, 0.0)) for step, kl in finite_series(metrics, "ppo", "eval/kl").items()}


def metric_points(metrics: Metrics, stage: str, key: str) -> list[Point]:
    """Return step and value of one metric, in the order of the steps; null becomes nan."""
    return list(zip(*series(metrics, stage, key), strict=True))


def _figure(name: str, texts: Locale, chart: Chart, hint: str | None = None) -> Iterator[ChartFigure]:
    """Yield the chart with its texts, or nothing where it has no points."""
    shown = texts(f"chart.{name}.hint") if hint is None else hint
    yield from chart_figure(name, chart, shown, texts(f"chart.{name}.title"))


def _in_words(judge: str | None, texts: Locale) -> str:
    return judge_in_words(judge, texts) if judge else texts("judge.some")


def _frontier(name: str, metrics: Metrics, role: JudgeRole, texts: Locale, judge: str) -> Iterator[ChartFigure]:
    """Yield proxy (reward model) and a judge over the distance from SFT, on two scales since their units differ."""
    distance, proxy = _distance(metrics), finite_series(metrics, "ppo", "eval/score")
    steps = [step for step in distance if step in proxy]
    if len(steps) < 2:
        return
    judged = _distance_and_score(metrics, role)
    if name != "frontier" and not judged:
        return
    label_of_proxy = texts("chart.proxy.rewards" if reward_names(metrics) else "chart.proxy")
    label = texts(f"chart.gold.{role}" if name == "frontier" else "chart.second_judge")
    lines = [
        Line(label_of_proxy, [(distance[step], proxy[step]) for step in steps]),
        Line(label, [judged[step] for step in steps if step in judged], colour=1, right=True),
    ]
    yield from _figure(
        name,
        texts,
        Chart(texts(f"chart.{name}.title"), texts("chart.distance"), label_of_proxy, label, lines=lines),
        texts(f"chart.{name}.hint", judge=judge),
    )


def _win_rates(metrics: Metrics, texts: Locale, judge: str, second_judge: str) -> Iterator[ChartFigure]:
    """Yield the win rates of the policy against SFT by the judges that followed the training."""
    by_gold, by_second = (metric_points(metrics, "ppo", f"eval/{key}") for key in ("win_rate", "second_win_rate"))
    hint = "chart.win_rates.hint.both" if by_second else "chart.win_rates.hint"
    yield from _figure(
        "win_rates",
        texts,
        Chart(
            texts("chart.win_rates.title"),
            texts("chart.step"),
            texts("chart.win_rates.unit"),
            lines=[
                Line(texts("chart.win_rates.gold"), by_gold, dots=True),
                Line(texts("chart.second_judge"), by_second, colour=1, dots=True),
            ],
            guides=[Guide((None, None), (0.5, 0.5))],
            y_range=(0.0, 1.0),
        ),
        texts(hint, judge=judge, second=second_judge),
    )


def _reward_figures(reward: RewardResult, texts: Locale) -> Iterator[ChartFigure]:
    """Yield the charts of the held-out comparisons."""
    if reward.accuracy is not None and reward.longer_wins is not None:
        yield from _figure("held_out_accuracy", texts, _accuracy(reward, texts))
    if reward.reliability:
        yield from _figure("calibration", texts, _calibration(reward.reliability, texts))
    if reward.margins:
        yield from _figure("margins", texts, _margins(reward.margins, texts))


def _accuracy(reward: RewardResult, texts: Locale) -> Chart:
    """Return held-out accuracy and the length baseline with 95 % intervals; chance is dotted."""
    bars = []
    for place, (name, value, interval) in enumerate(
        (
            ("reward_model", reward.accuracy, reward.accuracy_interval),
            ("longer_wins", reward.longer_wins, reward.longer_wins_interval),
        )
    ):
        low, high = interval or (None, None)
        known = (low, high) if low is not None and high is not None else None
        bars.append(ChartBar(texts(f"chart.{name}"), place - 0.25, place + 0.25, value or 0.0, place, known))
    return Chart(
        texts("chart.held_out_accuracy.title"),
        "",
        texts("chart.held_out_accuracy.unit"),
        bars=bars,
        guides=[Guide((None, None), (0.5, 0.5))],
        x_range=(-0.6, 1.6),
        y_range=(0.0, 1.0),
        x_names=True,
    )


def _calibration(bins: Sequence[ReliabilityRow], texts: Locale) -> Chart:
    """Return accuracy over predicted probability; a calibrated model is on the diagonal."""
    points = [(found.probability, found.accuracy) for found in bins]
    low = min(0.5, *(x for x, _ in points), *(y for _, y in points))
    return Chart(
        texts("chart.calibration.title"),
        texts("chart.calibration.x"),
        texts("chart.calibration.unit"),
        lines=[Line(texts("chart.reward_model"), points)],
        guides=[Guide((low, 1.0), (low, 1.0))],
        x_range=(low, 1.0),
        y_range=(low, 1.0),
    )


def _margins(margins: Sequence[float], texts: Locale) -> Chart:
    """Return the histogram of the margins: score of the preferred answer minus the other's."""
    count = min(30, max(5, round(len(margins) ** 0.5)))
    low, high = min(margins), max(margins)
    width = (high - low) / count or 1.0
    heights = [0] * count
    for margin in margins:
        heights[min(count - 1, int((margin - low) / width))] += 1
    name = texts("chart.margins.unit")
    bars = [ChartBar(name, low + i * width, low + (i + 0.92) * width, height) for i, height in enumerate(heights)]
    at_zero = [Guide((0.0, 0.0), (None, None))] if low <= 0 <= high else []
    return Chart(texts("chart.margins.title"), texts("chart.margins.x"), name, bars=bars, guides=at_zero)
