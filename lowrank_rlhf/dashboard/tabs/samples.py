"""Answers as tables: the policy's at each evaluation, and SFT's next to the policy's after the last stage."""

import json
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lowrank_rlhf.dashboard.text import html, t
from lowrank_rlhf.reports.answers import Row, first_answers, has_greedy
from lowrank_rlhf.reports.format import number
from lowrank_rlhf.run.records import Sample

_MAX_ROWS = 24
_UNFOLDED = 2
_MAX_STEPS = 4
_MAX_LINES = 96
Rows = Sequence[dict[str, Any]]


def samples(
    run: Path,
    watched: Rows,
    evaluated: Rows,
    language: str,
    number: int = 1,
    also: Collection[int] = (),
    own_rewards: bool = False,
) -> str:
    """Return the tables as HTML; empty text for a run without samples.

    Args:
        run: folder of the run, or of a later round in it.
        watched: the rows of its watched.jsonl.
        evaluated: the rows of its eval.jsonl.
        language: language of the texts.
        number: the round.
        also: steps whose answers are shown besides those of the last evaluations.
        own_rewards: True for scores by `ppo.rewards`, not by the reward model alone.
    """
    tables, score = [], t("samples.rewards" if own_rewards else "samples.score", language)
    if compared := first_answers(evaluated):
        lead = t("samples.compared", language, shown=min(_MAX_ROWS, len(compared)), all=len(compared))
        rows = [_compared(row, score, language) for row in compared[:_MAX_ROWS]]
        head = [t(f"samples.{name}", language) for name in ("prompt", "sft", "policy")]
        tables.append(_folding_table(lead, head, rows, language))
    if _sound(watched):
        tables.append(_by_step(watched, "sft" if number == 1 else "last", score, language, also))
    if not tables and (rows := _sampled(run)):
        first = number == 1
        head = [t(f"samples.{name}", language) for name in ("prompt", "sft" if first else "last")]
        lead = t("samples.sampled" if first else "samples.sampled_last", language)
        tables.append(_folding_table(lead, head, rows, language))
    return f"<h2>{html(t('samples.title', language))}</h2>{''.join(tables)}" if tables else ""


def _folding_table(lead: str, head: Sequence[str], rows: Sequence[str], language: str) -> str:
    """Return the table of the first rows, and below it one of the others, folded."""
    first, rest = _table(lead, head, rows[:_UNFOLDED]), rows[_UNFOLDED:]
    if not rest:
        return first
    summary = html(t("samples.more", language, count=len(rest)))
    return f"{first}<details><summary>{summary}</summary>{_table('', head, rest)}</details>"


def _table(lead: str, head: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f"<th>{html(name)}</th>" for name in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<p class="soft">{html(lead)}</p>'
        f'<table class="samples"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>'
    )


def evaluated_step(watched: Rows, step: int) -> int | None:
    """Return the first step from this one on with answers in watched.jsonl, else the last one; None without answers."""
    steps = {row["step"] for row in _sound(watched)}
    return min((each for each in steps if each >= step), default=max(steps, default=None))


def _sound(watched: Rows) -> Rows:
    """Return the rows without damaged ones, whose step is not a number."""
    return [row for row in watched if type(row.get("step")) is int]


def place_of(step: int) -> str:
    """Return the id of the element with the answers of a step."""
    return f"answers-{step}"


def _by_step(watched: Rows, first: str, score: str, language: str, also: Collection[int]) -> str:
    """Return a row for each prompt: the policy's answers before PPO (`first`: whose) and at its last evaluations.

    `score`: name of the scores.
    """
    watched = _sound(watched)
    found = {(row["prompt_id"], row["step"]): row for row in watched}
    steps = sorted({step for _, step in found})
    steps = [step for step in steps if step in {*steps[:1], *steps[1:][-_MAX_STEPS:], *also}]
    names = [t(f"samples.{first}" if step == 0 else "samples.step", language, step=step) for step in steps]
    rows: list[str] = []
    for prompt in dict.fromkeys(row["prompt_id"] for row in watched):
        shown = [found.get((prompt, step), {}) for step in steps]
        question = next(row["prompt"] for row in shown if row)
        cells = (
            _cell(
                name,
                row.get("answer"),
                f"{score} {number(row.get('score'))}",
                "" if rows else place_of(step),
            )
            for name, row, step in zip(names, shown, steps, strict=True)
        )
        rows.append(_cell(t("samples.prompt", language), question, "") + "".join(cells))
    return _table(t("samples.by_step", language), [t("samples.prompt", language), *names], rows)


def _compared(row: Row, score: str, language: str) -> str:
    cells = [_cell(t("samples.prompt", language), row.get("prompt"), "")]
    for side in ("sft", "policy"):
        decoded = {"greedy": f"greedy_{side}", "sampled_answer": side} if has_greedy(row) else {"": side}
        shown = "".join(
            (f'<div class="soft">{html(t(f"samples.{decoding}", language))}</div>' if decoding else "")
            + _answer(row.get(key), _scores(row, key, score, language))
            for decoding, key in decoded.items()
        )
        cells.append(f'<td data-name="{html(t(f"samples.{side}", language))}">{shown}</td>')
    return "".join(cells)


def _scores(row: Row, key: str, score: str, language: str) -> str:
    judged = f" · {t('samples.judge', language)} {number(row[f'judge_{key}'])}" if f"judge_{key}" in row else ""
    return f"{score} {number(row.get(f'score_{key}'))}{judged}"


def _cell(name: str, text: object, below: str, place: str = "") -> str:
    known = f' id="{html(place)}"' if place else ""
    return f'<td{known} data-name="{html(name)}">{_answer(text, below)}</td>'


def _answer(text: object, below: str) -> str:
    under = f'<div class="soft">{html(below)}</div>' if below else ""
    return f'<div dir="auto">{html(text)}</div>{under}'


def _sampled(run: Path) -> list[str]:
    """Return rows of the first prompts with their sampled answers, from the files of the stages sample and rank."""
    prompts = {row["id"]: row["messages"][-1]["content"] for row in _rows(run / "prompts.jsonl")}
    groups: dict[str, list[str]] = {}
    for row in _rows(run / "samples.jsonl"):
        sample = Sample.model_validate(row)
        groups.setdefault(sample.prompt_id, []).append(sample.text)
    return [
        _cell("", prompts.get(prompt, prompt), "") + _cell("", "\n———\n".join(texts), "")
        for prompt, texts in list(groups.items())[:_MAX_ROWS]
    ]


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the first rows of one of the run's files; none where it is missing or incomplete."""
    try:
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in islice(file, _MAX_LINES)]
    except (OSError, ValueError):
        return []
