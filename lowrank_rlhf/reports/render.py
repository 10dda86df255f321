"""The report of a run: one HTML file that needs nothing else, its Markdown twin, and the terminal's last words."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.cells import cell_len, chop_cells, set_cell_size

from lowrank_rlhf.maths.text import EAST_ASIAN
from lowrank_rlhf.reports.alarms import alarms
from lowrank_rlhf.reports.format import judge_in_words
from lowrank_rlhf.reports.page import (
    FEATURED,
    html_page,
    html_plots,
    html_samples,
    html_table,
    markdown_page,
    samples_table,
)
from lowrank_rlhf.reports.plots import draw
from lowrank_rlhf.reports.tables import caveat, comparison, details, headline, scores
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import write_atomic

__all__ = ["alarms", "summary_message", "write_report"]

_WIDTH = 100
_TABLE_WIDTHS = (24, 12, 15, 43)
_SIDE_WIDTHS = (49, 49)
# What stays on one line, with the spaces before it: a word, or one East Asian letter with the marks around it.
_PIECE = re.compile(rf" *(?:[（《「『【“‘]*[{EAST_ASIAN}][，。、！？；：）》」』】”’…—]*|[^ {EAST_ASIAN}]+)")


def write_report(
    run_dir_path: Path,
    summaries: Mapping[str, Mapping[str, Any]],
    eval_rows: Sequence[Mapping[str, Any]],
    out: Path,
) -> None:
    """Write `report.html` and `report.md` into the folder `out`.

    summaries are those of the finished stages by name (a missing stage is left out of the report), eval_rows the rows
    of eval.jsonl; the run's metrics.jsonl is read where it exists.
    """
    metrics = _metrics(run_dir_path)
    named = summaries.get("ppo", {}).get("gold") or summaries.get("evaluate", {}).get("judge", "held-out")
    opening = (run_dir_path.name, [headline(summaries), caveat(summaries)], alarms(metrics, summaries))
    first = [table for table in (comparison(summaries),) if table]
    rest = details(summaries)
    sections = [
        *map(html_table, first),
        html_samples(eval_rows),
        html_plots(draw(metrics, summaries, judge_in_words(named))),
        *map(html_table, rest),
    ]
    samples = [table for table in (samples_table(eval_rows),) if table]
    write_atomic(out / "report.html", html_page(*opening, sections))
    write_atomic(out / "report.md", markdown_page(*opening, [*first, *rest, *samples]))


def _metrics(run_dir_path: Path) -> list[dict[str, Any]]:
    return list(RunDir(run_dir_path).metrics.read())


def _wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells of a terminal, in which East Asian letters are two wide.

    Control characters, which a terminal would obey, become spaces.
    """
    safe = "".join(character if character.isprintable() or character == "\n" else " " for character in text)
    lines = (line for part in safe.splitlines() for line in _filled(part.replace(" %", "\N{NO-BREAK SPACE}%"), width))
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _filled(text: str, width: int) -> Iterator[str]:
    """Lines broken between words and between East Asian letters; within a word only where it is longer than a line."""
    line = ""
    for piece in _PIECE.findall(text):
        if line and cell_len(line + piece) > width:
            yield line
            line = ""
        line = line + piece if line else piece.lstrip(" ")
        if cell_len(line) > width:
            *full, line = chop_cells(line, width)
            yield from full
    if line:
        yield line


def _columns(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Cells side by side, each wrapped in its own column, two spaces between them."""
    wrapped = [_wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
    return [
        "  ".join(set_cell_size(line, width) for line, width in zip(lines, widths, strict=True)).rstrip()
        for lines in zip_longest(*wrapped, fillvalue="")
    ]


def _figures(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The table of figures, before and after."""
    table = comparison(summaries)
    if table is None:
        return []
    rule = ["  ".join("-" * width for width in _TABLE_WIDTHS)]
    rows = [line for row in table.rows for line in _columns(row, _TABLE_WIDTHS)]
    return [*_columns(table.header, _TABLE_WIDTHS), *rule, *rows, ""]


def _sample(row: Mapping[str, Any]) -> list[str]:
    """A prompt with both answers side by side and their scores."""
    return [
        *_wrap(f"Prompt: {row['prompt']}", _WIDTH),
        "",
        *_columns(("BEFORE (SFT)", "AFTER (aligned)"), _SIDE_WIDTHS),
        *_columns((str(row["sft"]), str(row["policy"])), _SIDE_WIDTHS),
        *_columns((f"[{scores(row, 'sft')}]", f"[{scores(row, 'policy')}]"), _SIDE_WIDTHS),
        "-" * _WIDTH,
    ]


def summary_message(
    run_dir_path: Path,
    summaries: Mapping[str, Mapping[str, Any]],
    eval_rows: Sequence[Mapping[str, Any]],
    report_path: Path | str,
) -> str:
    """What the terminal prints at the end of a run, at most 100 wide but for the path, in plain text.

    The headline, warnings, the table of figures, three prompts with both answers, and where the report is.
    """
    warnings = (f"WARNING: {text}" for text in alarms(_metrics(run_dir_path), summaries))
    paragraphs = (headline(summaries), caveat(summaries), *warnings)
    lines = [line for text in paragraphs if text for line in [*_wrap(text, _WIDTH), ""]]
    lines += _figures(summaries)
    if eval_rows:
        lines += [
            "The first prompts, as they come:",
            "",
            *(x for row in eval_rows[:FEATURED] for x in _sample(row)),
            "",
        ]
    return "\n".join([*lines, "The full report, to open in a browser:", f"  {report_path}"])
