"""Answers as tables: the policy's at each evaluation, and SFT's next to the policy's after the last stage."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import gradio as gr

from lowrank_rlhf.dashboard.page import QUIET, DashboardPage
from lowrank_rlhf.dashboard.text import LANGUAGES, html, t
from lowrank_rlhf.reports.answers import Row, first_answers, has_greedy
from lowrank_rlhf.reports.format import number
from lowrank_rlhf.run.records import Sample

_MAX_ROWS = 24
_UNFOLDED = 2
_MAX_STEPS = 4
_MAX_LINES = 96
Rows = Sequence[dict[str, Any]]
Figures = Mapping[str, Any]
Each = TypeVar("Each")
_ORDERS = ("evaluated", "best", "worst", "kl", "length")


class AnswerFilter(NamedTuple):
    """What a visitor wants to see of the answers."""

    search: str = ""
    """Words that a prompt or one of its answers contains."""
    order: str = _ORDERS[0]
    """By the figures of the step that is chosen, else of the last one."""
    step: int = 0
    """Step that is shown besides the others."""


ALL = AnswerFilter()


def lay_out(page: DashboardPage) -> tuple[gr.Row, list[Any]]:
    """Add the fields of an `AnswerFilter`, in order, and return their row and them."""
    first = next(iter(LANGUAGES))
    with gr.Row(elem_id="answer-filter", visible=False) as row:
        search = page.texts.add(gr.Textbox(max_lines=1, max_length=64, elem_id="answer-search"), label="samples.search")
        order = page.texts.add(
            gr.Dropdown(_orders(first), value=_ORDERS[0], elem_id="answer-order"), label="samples.order"
        )
        # Custom values are allowed: after a restart of the server Gradio would refuse each step of an open page.
        step = page.texts.add(gr.Dropdown([], allow_custom_value=True, elem_id="answer-step"), label="samples.further")
    page.language.change(lambda language: gr.update(choices=_orders(language)), page.language, order, **QUIET)
    return row, [search, order, step]


def _orders(language: str) -> list[tuple[str, str]]:
    return [(t(f"samples.by_{order}", language), order) for order in _ORDERS]


def step_choices(watched: Rows, language: str) -> list[tuple[str, int]]:
    """Return the steps with answers as choices; step 0, which is always shown, stands for no further one."""
    steps = sorted({row["step"] for row in _sound(watched)} - {0})
    return [(t("samples.no_further", language), 0), *((str(step), step) for step in steps)]


def samples(
    run: Path,
    watched: Rows,
    evaluated: Rows,
    language: str,
    number: int = 1,
    also: Collection[int] = (),
    own_rewards: bool = False,
    wanted: AnswerFilter = ALL,
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
        wanted: search, order and a further step.
    """
    tables, score = [], t("samples.rewards" if own_rewards else "samples.score", language)
    if compared := first_answers(evaluated):
        found = _in_order([row for row in compared if _contains(row, wanted)], _figures_after, wanted)
        lead = t(
            "samples.compared" if wanted.order == _ORDERS[0] and len(found) == len(compared) else "samples.found",
            language,
            shown=min(_MAX_ROWS, len(found)),
            all=len(compared),
            found=len(found),
        )
        rows = [_compared(row, score, language) for row in found[:_MAX_ROWS]]
        head = [t(f"samples.{name}", language) for name in ("prompt", "sft", "policy")]
        tables += [_folding_table(lead, head, rows, language)] if rows else []
    if _sound(watched):
        tables.append(_by_step(watched, "sft" if number == 1 else "last", score, language, also, wanted))
    if not "".join(tables) and (compared or _sound(watched)):
        tables.append(f'<p class="empty">{html(t("samples.none", language))}</p>')
    elif not tables and (rows := _sampled(run)):
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


def _by_step(watched: Rows, first: str, score: str, language: str, also: Collection[int], wanted: AnswerFilter) -> str:
    """Return a row for each prompt: the policy's answers before PPO (`first`: whose) and at its last evaluations.

    `score`: name of the scores. Empty if nothing is found.
    """
    watched = _sound(watched)
    found = {(row["prompt_id"], row["step"]): row for row in watched}
    steps = sorted({step for _, step in found})
    chosen = wanted.step if wanted.step and wanted.step in steps else steps[-1]
    steps = [step for step in steps if step in {*steps[:1], *steps[1:][-_MAX_STEPS:], *also, chosen}]
    names = [t(f"samples.{first}" if step == 0 else "samples.step", language, step=step) for step in steps]
    answers = [
        {step: found.get((prompt, step), {}) for step in steps}
        for prompt in dict.fromkeys(row["prompt_id"] for row in watched)
    ]
    answers = [row for row in answers if any(_contains(each, wanted) for each in row.values())]
    rows: list[str] = []
    for shown in _in_order(answers, lambda row: _figures_of(row[chosen]), wanted):
        question = next(row["prompt"] for row in shown.values() if row)
        cells = (
            _cell(name, row.get("answer"), _figures(row, score, language), "" if rows else place_of(step))
            for name, (step, row) in zip(names, shown.items(), strict=True)
        )
        rows.append(_cell(t("samples.prompt", language), question, "") + "".join(cells))
    if not rows:
        return ""
    return _table(t("samples.by_step", language), [t("samples.prompt", language), *names], rows)


def _contains(row: Row, wanted: AnswerFilter) -> bool:
    """Return True if the row's texts contain all words of the search."""
    keys = ("prompt", "answer", "sft", "policy", "greedy_sft", "greedy_policy")
    text = "\n".join(str(row[key]) for key in keys if key in row).casefold()
    return bool(row) and all(word in text for word in wanted.search.casefold().split())


def _in_order(rows: Sequence[Each], figures: Callable[[Each], Figures], wanted: AnswerFilter) -> list[Each]:
    """Return rows in the order of the filter, those without the figure last."""
    key, sign = {"best": ("score", -1), "worst": ("score", 1)}.get(wanted.order, (wanted.order, -1))

    def place(row: Each) -> tuple[bool, float]:
        value = figures(row).get(key)
        return (False, sign * value) if isinstance(value, int | float) else (True, 0.0)

    return sorted(rows, key=place)


def _figures_of(row: Row) -> Figures:
    """Return score, KL and length of an answer of watched.jsonl."""
    return {"score": row.get("score"), "kl": row.get("kl"), "length": len(str(row.get("answer", "")))}


def _figures_after(row: Row) -> Figures:
    """Return score, KL and length of the aligned model's sampled answer of eval.jsonl."""
    return {"score": row.get("score_policy"), "kl": row.get("kl"), "length": len(str(row.get("policy", "")))}


def _figures(row: Row, score: str, language: str) -> str:
    """Return the figures below an answer by step; those of a cell without an answer are empty."""
    parts = [f"{score} {number(row.get('score'))}"]
    if row.get("kl") is not None:
        parts.append(t("samples.kl", language, kl=number(row["kl"])))
    if "answer" in row:
        parts.append(t("samples.length", language, count=len(str(row["answer"]))))
    return " · ".join(parts)


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
