"""Report of a run: one self-contained HTML file in English and Chinese, and a Markdown file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.reports.alarms import Alarm, find_alarms
from lowrank_rlhf.reports.answers import ShownAnswer, first_answers, has_greedy, shown_answers
from lowrank_rlhf.reports.benchmarks import Benchmarks, benchmark_tables, yardstick_table
from lowrank_rlhf.reports.charts import ChartFigure, of_round, run_figures
from lowrank_rlhf.reports.format import Metrics, Table, number
from lowrank_rlhf.reports.locale import ENGLISH, LANGUAGES, Locale, locale
from lowrank_rlhf.reports.rounds import RoundFigures, read_rounds, rounds_figure, rounds_table
from lowrank_rlhf.reports.story import about_run, caveats, headline, read_settings, rewarded
from lowrank_rlhf.reports.tables import comparison, details
from lowrank_rlhf.reports.templating import html_environment, markdown_environment
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import write_atomic
from lowrank_rlhf.run.results import Results
from lowrank_rlhf.run.results.benchmarks import read_harness_result, read_reward_bench_results

FEATURED = 4
"""Prompts that are shown unfolded."""
Rows = Sequence[Mapping[str, Any]]
"""Rows of eval.jsonl."""


class Side(NamedTuple):
    """One model's answers to a prompt, greedy first."""

    name: str
    answers: Sequence[ShownAnswer]


class ComparedAnswers(NamedTuple):
    """A prompt with the answers of several models."""

    prompt: str
    sides: tuple[Side, ...]
    kl: str
    """KL of the aligned model's sampled answer, in words; empty where it was not measured."""


@dataclass(frozen=True)
class ReportView:
    """Contents of a report in one language."""

    texts: Locale
    about: str
    """Model, data, ranker, training, date and machine; empty where they are not known."""
    rewarded: str
    """What the ranking rewards, and the range of scores; empty where it is not known."""
    lines: tuple[str, ...]
    """Headline and caveats."""
    alarms: Sequence[Alarm]
    comparison: Table | None
    rounds: Table | None
    """None in the first round."""
    yardsticks: Table | None
    details: Sequence[Table]
    figures: Sequence[ChartFigure]
    samples: Sequence[ComparedAnswers]
    samples_lead: str

    @property
    def tables(self) -> list[Table]:
        """All tables, including the answers."""
        found = [self.comparison, self.rounds, self.yardsticks, *self.details, _samples_table(self.samples, self.texts)]
        return [table for table in found if table]


def write_report(run_dir: RunDir, results: Results, eval_rows: Rows, out: Path) -> None:
    """Write `report.html` (English and Chinese) and `report.md` (English) into the folder `out`.

    Args:
        run_dir: the run, or a later round of it, whose metrics.jsonl is read where it exists.
        results: the results of the finished stages; a missing stage is left out of the report.
        eval_rows: the rows of eval.jsonl.
        out: the folder for both files.
    """
    config, metrics, rounds = read_settings(run_dir), list(run_dir.metrics.read()), read_rounds(run_dir, results)
    measured = read_harness_result(run_dir), read_reward_bench_results(run_dir)
    views = [
        _view(run_dir, config, metrics, results, eval_rows, rounds, measured, locale(language))
        for language in LANGUAGES
    ]
    name = run_dir.run.name if run_dir.number == 1 else f"{run_dir.run.name}/{run_dir.path.name}"
    page = html_environment().get_template("report.html.j2").render(run=name, views=views, featured=FEATURED)
    write_atomic(out / "report.html", page)
    write_atomic(out / "report.md", markdown_environment().get_template("report.md.j2").render(run=name, view=views[0]))


def _view(
    run_dir: RunDir,
    config: Config | None,
    metrics: Metrics,
    results: Results,
    eval_rows: Rows,
    rounds: Sequence[RoundFigures],
    measured: Benchmarks,
    texts: Locale,
) -> ReportView:
    alarms, rows = find_alarms(metrics, results), first_answers(eval_rows)
    greedy = sum(map(has_greedy, rows))
    return ReportView(
        texts=texts,
        about=about_run(run_dir, config, texts),
        rewarded=rewarded(config, texts),
        lines=(headline(results, texts, alarms), *caveats(results, texts)),
        alarms=alarms,
        comparison=comparison(results, texts),
        rounds=rounds_table(rounds, texts),
        yardsticks=yardstick_table(results, texts),
        details=[*benchmark_tables(measured, texts), *details(results, texts)],
        figures=[*rounds_figure(rounds, texts), *of_round(run_figures(metrics, results, texts), run_dir.number, texts)],
        samples=[_answers(row, texts) for row in rows],
        samples_lead=texts("report.samples.lead") + (texts("report.samples.greedy", count=greedy) if greedy else ""),
    )


def _answers(row: Mapping[str, Any], texts: Locale) -> ComparedAnswers:
    before, after = (Side(texts(f"column.{side}"), shown_answers(row, side, texts)) for side in ("sft", "policy"))
    key = "report.kl.sampled" if has_greedy(row) else "report.kl"
    kl = "" if row.get("kl") is None else texts(key, kl=number(row["kl"]))
    return ComparedAnswers(str(row["prompt"]), (before, after), kl)


def _samples_table(samples: Sequence[ComparedAnswers], texts: Locale = ENGLISH) -> Table | None:
    """Return all answers as a table, how each was decoded above it and its scores below."""
    if not samples:
        return None

    def cell(answer: ShownAnswer) -> str:
        above = f"{answer.decoding}:\n" if answer.decoding else ""
        return f"{above}{answer.text}" + (f"\n({answer.scores})" if answer.scores else "")

    rows = tuple((row.prompt, *("\n".join(map(cell, side.answers)) for side in row.sides)) for row in samples)
    header = tuple(texts(f"column.{name}") for name in ("prompt", "sft", "policy"))
    return Table(texts("report.samples"), "", header, rows)
