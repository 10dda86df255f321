"""Tables of the yardsticks, beside the policy's sampled answers, and of published benchmarks."""

from collections.abc import Sequence

from lowrank_rlhf.reports.format import MISSING, ColumnKind, Table, judge_label, number, percent, percent_bounds
from lowrank_rlhf.reports.locale import Locale
from lowrank_rlhf.run.results import EvaluateResult, Results
from lowrank_rlhf.run.results.benchmarks import HarnessResult, HarnessValue, RewardBenchResult
from lowrank_rlhf.run.results.yardsticks import Yardstick, Yardsticks, YardstickScore


def yardstick_table(results: Results, texts: Locale) -> Table | None:
    """Return mean score and win rate by each judge; None for runs without yardsticks."""
    evaluate = results.evaluate
    if evaluate is None or evaluate.yardsticks is None:
        return None
    found = evaluate.yardsticks
    judges = tuple(judge_label(score.judge, texts) for score in found.rows[0].scores)
    header = (texts("column.answers"), *judges, texts("column.meaning"))
    rows = tuple(
        (_label(row, found, texts), *map(_score, row.scores), _note(row, found, evaluate, texts)) for row in found.rows
    )
    kinds: list[ColumnKind] = ["text" for _ in header[:-1]]
    return Table(
        texts("yardsticks.title"), texts("yardsticks.lead", prompts=found.prompts), header, rows, (*kinds, "note")
    )


def _label(row: Yardstick, found: Yardsticks, texts: Locale) -> str:
    return texts(f"yardstick.{row.id}", n=found.n)


def _score(score: YardstickScore) -> str:
    """Return such as `0.66 · 78 % [60, 90]`, as far as measured."""
    parts = [number(score.mean_score)] if score.mean_score is not None else []
    if score.win_rate is not None:
        parts.append(percent(score.win_rate) + percent_bounds(score.win_rate_interval))
    return " · ".join(parts) or MISSING


def _note(row: Yardstick, found: Yardsticks, evaluate: EvaluateResult, texts: Locale) -> str:
    if row.id != "best_of_n":
        return texts(f"yardstick.{row.id}.note")
    key = "yardstick.best_of_n.note" + (".capped" if found.capped else "")
    return texts(key, n=found.n, kl=number(found.best_of_n_kl), policy=number(evaluate.kl_per_answer))


Benchmarks = tuple[HarnessResult | None, Sequence[RewardBenchResult]]
"""Published benchmarks that were measured."""


def benchmark_tables(measured: Benchmarks, texts: Locale) -> list[Table]:
    """Return a table of all models, if measured, and those of the reward model."""
    harness, reward_bench = measured
    found = [harness_table(harness, texts)] if harness else []
    return [*found, *(reward_bench_table(each, texts) for each in reward_bench)]


def reward_bench_table(result: RewardBenchResult, texts: Locale) -> Table:
    """Return the overall score, and each section's with its subsets."""
    chance = percent(0.5 if result.benchmark == "RewardBench" else 0.25)
    lead = texts("reward_bench.lead", rows=result.rows, file=result.file, chance=chance)
    if result.left_out or result.cut:
        counts = {"left_out": result.left_out, "cut": result.cut, "max_length": result.max_length}
        lead += texts("reward_bench.too_long", **counts)
    names = ["section", "subset"] if any(score.subset for score in result.scores) else ["section"]
    rows = tuple(
        (
            *(score.section or texts("reward_bench.overall"), score.subset or "")[: len(names)],
            str(score.rows),
            percent(score.score) + percent_bounds(score.interval),
        )
        for score in result.scores
    )
    header = tuple(texts(f"column.{name}") for name in (*names, "rows", "score"))
    return Table(result.benchmark, lead, header, rows)


def harness_table(result: HarnessResult, texts: Locale) -> Table:
    """Return every metric of base, SFT model and policy."""
    rows = tuple(
        (
            figure.task,
            figure.metric,
            str(figure.rows),
            *(_harness_value(figure.values.get(name)) for name in ("base", "sft", "policy")),
        )
        for figure in result.figures
    )
    lengths = ", ".join(map(str, sorted({figure.max_length for figure in result.figures})))
    header = tuple(texts(f"column.{name}") for name in ("task", "metric", "rows", "base", "sft", "policy"))
    return Table(texts("harness.title"), texts("harness.lead", max_length=lengths), header, rows)


def _harness_value(found: HarnessValue | None) -> str:
    if found is None:
        return MISSING
    low, high = found.interval or (None, None)
    bounds = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    return f"{found.value:.3f}{bounds}"
