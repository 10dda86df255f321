"""Answers as a table: SFT's beside the policy's once the run has compared them, before that SFT's own."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lowrank_rlhf.dashboard.text import html, t
from lowrank_rlhf.records import Sample
from lowrank_rlhf.stages.report_data import number

_MOST_ROWS = 24
_LINES_READ = 96


def samples(run: Path, evaluated: Sequence[dict[str, Any]], language: str) -> str:
    """A table in HTML; empty where the run has sampled nothing yet."""
    if evaluated:
        rows = [_compared(row, language) for row in evaluated[:_MOST_ROWS]]
        head = [t(f"samples.{name}", language) for name in ("prompt", "sft", "policy")]
        lead = t("samples.compared", language, shown=len(rows), all=len(evaluated))
    else:
        rows = _sampled(run)
        head = [t(f"samples.{name}", language) for name in ("prompt", "sft")]
        lead = t("samples.sampled", language)
    if not rows:
        return ""
    cells = "".join(f"<th>{html(name)}</th>" for name in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<h3>{html(t("samples.title", language))}</h3><p class="soft">{html(lead)}</p>'
        f'<table class="samples"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>'
    )


def _compared(row: dict[str, Any], language: str) -> str:
    cells = [_cell(t("samples.prompt", language), row.get("prompt"), "")]
    for side in ("sft", "policy"):
        score = number(row.get(f"score_{side}"))
        judged = f" · {t('samples.judge', language)} {number(row[f'judge_{side}'])}" if f"judge_{side}" in row else ""
        below = f"{t('samples.score', language)} {score}{judged}"
        cells.append(_cell(t(f"samples.{side}", language), row.get(side), below))
    return "".join(cells)


def _cell(name: str, text: object, below: str) -> str:
    under = f'<div class="soft">{html(below)}</div>' if below else ""
    return f'<td data-name="{html(name)}"><div dir="auto">{html(text)}</div>{under}</td>'


def _sampled(run: Path) -> list[str]:
    """The first prompts' answers, from what the stages sample and rank left."""
    prompts = {row["id"]: row["messages"][-1]["content"] for row in _rows(run / "prompts.jsonl")}
    groups: dict[str, list[str]] = {}
    for row in _rows(run / "samples.jsonl"):
        sample = Sample.model_validate(row)
        groups.setdefault(sample.prompt_id, []).append(sample.text)
    return [
        _cell("", prompts.get(prompt, prompt), "") + _cell("", "\n———\n".join(texts), "")
        for prompt, texts in list(groups.items())[:_MOST_ROWS]
    ]


def _rows(path: Path) -> list[dict[str, Any]]:
    """The first rows of a file of the run; none where it is not there or not whole."""
    try:
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in islice(file, _LINES_READ)]
    except (OSError, ValueError):
        return []
