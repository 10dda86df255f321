"""Report of a run: one self-contained HTML file in English and Chinese, and a Markdown file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lowrank_rlhf.reports.alarms import Alarm, find_alarms
from lowrank_rlhf.reports.charts import ChartFigure, run_figures
from lowrank_rlhf.reports.format import Metrics, Table, number
from lowrank_rlhf.reports.locale import ENGLISH, LANGUAGES, Locale, locale
from lowrank_rlhf.reports.tables import caveats, comparison, details, first_answers, headline, scores
from lowrank_rlhf.reports.templating import html_environment, markdown_environment
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import write_atomic
from lowrank_rlhf.run.results import Results

FEATURED = 3
"""Prompts that are shown unfolded."""
Rows = Sequence[Mapping[str, Any]]
"""Rows of eval.jsonl."""


class Side(NamedTuple):
    """One model's answer to a prompt, with its scores in words."""

    name: str
    text: str
    scores: str


class ComparedAnswers(NamedTuple):
    """A prompt with the answers of both models."""

    prompt: str
    sides: tuple[Side, Side]
    kl: str
    """KL of the aligned model's answer; empty where it was not measured."""


@dataclass(frozen=True)
class ReportView:
    """Contents of a report in one language."""

    texts: Locale
    lines: tuple[str, ...]
    """Headline and caveats."""
    alarms: Sequence[Alarm]
    comparison: Table | None
    details: Sequence[Table]
    figures: Sequence[ChartFigure]
    samples: Sequence[ComparedAnswers]

    @property
    def tables(self) -> list[Table]:
        """All tables, including the answers."""
        found = [self.comparison, *self.details, _samples_table(self.samples, self.texts)]
        return [table for table in found if table]


def write_report(run_dir: RunDir, results: Results, eval_rows: Rows, out: Path) -> None:
    """Write `report.html` (English and Chinese) and `report.md` (English) into the folder `out`.

    Args:
        run_dir: the run, whose metrics.jsonl is read where it exists.
        results: the results of the finished stages; a missing stage is left out of the report.
        eval_rows: the rows of eval.jsonl.
        out: the folder for both files.
    """
    metrics = list(run_dir.metrics.read())
    views = [_view(metrics, results, eval_rows, locale(language)) for language in LANGUAGES]
    name = run_dir.path.name
    page = html_environment().get_template("report.html.j2").render(run=name, views=views, featured=FEATURED)
    write_atomic(out / "report.html", page)
    write_atomic(out / "report.md", markdown_environment().get_template("report.md.j2").render(run=name, view=views[0]))


def _view(metrics: Metrics, results: Results, eval_rows: Rows, texts: Locale) -> ReportView:
    alarms = find_alarms(metrics, results)
    return ReportView(
        texts=texts,
        lines=(headline(results, texts, alarms), *caveats(results, texts)),
        alarms=alarms,
        comparison=comparison(results, texts),
        details=details(results, texts),
        figures=run_figures(metrics, results, texts),
        samples=[_answers(row, texts) for row in first_answers(eval_rows)],
    )


def _answers(row: Mapping[str, Any], texts: Locale) -> ComparedAnswers:
    before, after = (
        Side(texts(f"column.{side}"), str(row[side]), scores(row, side, texts)) for side in ("sft", "policy")
    )
    return ComparedAnswers(str(row["prompt"]), (before, after), "" if row.get("kl") is None else number(row["kl"]))


def _samples_table(samples: Sequence[ComparedAnswers], texts: Locale = ENGLISH) -> Table | None:
    """Return all answers as a table, the scores below each answer."""
    if not samples:
        return None
    rows = tuple((row.prompt, *(f"{side.text}\n({side.scores})" for side in row.sides)) for row in samples)
    header = tuple(texts(f"column.{name}") for name in ("prompt", "sft", "policy"))
    return Table(texts("report.samples"), "", header, rows)
