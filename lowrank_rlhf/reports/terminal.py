"""The summary of a run for the terminal, in plain English text."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.cells import cell_len, chop_cells, set_cell_size

from lowrank_rlhf.maths.text import EAST_ASIAN
from lowrank_rlhf.reports.alarms import find_alarms
from lowrank_rlhf.reports.answers import ShownAnswer, first_answers, shown_answers
from lowrank_rlhf.reports.locale import ENGLISH
from lowrank_rlhf.reports.render import FEATURED, Rows
from lowrank_rlhf.reports.story import caveats, headline
from lowrank_rlhf.reports.tables import comparison
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.results import Results

_WIDTH = 100
_TABLE_WIDTHS = (24, 12, 15, 43)
_SIDE_WIDTHS = (49, 49)
# Kept on one line, with the spaces before it: a word, or one East Asian letter with the marks around it.
_PIECE = re.compile(rf" *(?:[（《「『【“‘]*[{EAST_ASIAN}][，。、！？；：）》」』】”’…—]*|[^ {EAST_ASIAN}]+)")


def summary_message(run_dir: RunDir, results: Results, eval_rows: Rows, report_path: Path | str) -> str:
    """Return the end of a run as text, at most 100 columns wide except for the path.

    It has the headline, warnings, the table of figures, three prompts with both answers, and the report's path.
    """
    found = find_alarms(list(run_dir.metrics.read()), results)
    warnings = (f"WARNING: {alarm.text(ENGLISH)}" for alarm in found)
    paragraphs = (headline(results, ENGLISH, found), *caveats(results, ENGLISH), *warnings)
    lines = [line for text in paragraphs if text for line in [*_wrap(text, _WIDTH), ""]]
    lines += _figures(results)
    if eval_rows:
        lines += [
            "The first prompts, in their original order:",
            "",
            *(line for row in first_answers(eval_rows)[:FEATURED] for line in _sample(row)),
            "",
        ]
    return "\n".join([*lines, "The full report, to open in a browser:", f"  {report_path}"])


def _figures(results: Results) -> list[str]:
    """Return the table of figures before and after."""
    table = comparison(results, ENGLISH)
    if table is None:
        return []
    rule = ["  ".join("-" * width for width in _TABLE_WIDTHS)]
    rows = [line for row in table.rows for line in _columns(row, _TABLE_WIDTHS)]
    return [*_columns(table.header, _TABLE_WIDTHS), *rule, *rows, ""]


def _sample(row: Mapping[str, Any]) -> list[str]:
    """Return a prompt with both models' answers in columns, greedy first, and their scores."""
    pairs = zip(*(shown_answers(row, side, ENGLISH) for side in ("sft", "policy")), strict=True)
    return [
        *_wrap(f"Prompt: {row['prompt']}", _WIDTH),
        "",
        *_columns(("BEFORE (SFT)", "AFTER (aligned)"), _SIDE_WIDTHS),
        *(line for pair in pairs for line in _pair(pair)),
        "-" * _WIDTH,
    ]


def _pair(pair: Sequence[ShownAnswer]) -> list[str]:
    """Return one answer of each model in columns, below how it was decoded and above its scores."""
    lines = _columns([f"{answer.decoding}:" for answer in pair], _SIDE_WIDTHS) if pair[0].decoding else []
    lines += _columns([answer.text for answer in pair], _SIDE_WIDTHS)
    return lines + _columns([f"[{answer.scores}]" if answer.scores else "" for answer in pair], _SIDE_WIDTHS)


def _wrap(text: str, width: int) -> list[str]:
    """Return lines of at most `width` cells of a terminal, in which East Asian letters are two wide.

    Control characters, which could control the terminal, become spaces.
    """
    safe = "".join(character if character.isprintable() or character == "\n" else " " for character in text)
    lines = (line for part in safe.splitlines() for line in _filled(part.replace(" %", "\N{NO-BREAK SPACE}%"), width))
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _filled(text: str, width: int) -> Iterator[str]:
    """Yield lines broken between words and East Asian letters; only a word longer than a line is broken inside."""
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
    """Return cells wrapped in columns, two spaces between them."""
    wrapped = [_wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
    return [
        "  ".join(set_cell_size(line, width) for line, width in zip(lines, widths, strict=True)).rstrip()
        for lines in zip_longest(*wrapped, fillvalue="")
    ]
