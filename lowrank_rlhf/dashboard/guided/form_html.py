"""HTML of the guided path: zones for files, the preview of the prompts, and the chosen settings with their reasons."""

import json
from collections.abc import Sequence
from typing import Any

from lowrank_rlhf.dashboard.guided.prompt_files import Preview
from lowrank_rlhf.dashboard.guided.settings import ChosenSetting
from lowrank_rlhf.dashboard.guided.summary import Summary
from lowrank_rlhf.dashboard.tabs.runs_html import note
from lowrank_rlhf.dashboard.text import html, t
from lowrank_rlhf.dashboard.wording import worded
from lowrank_rlhf.data.readers.sources import READERS

_LONGEST = 160
_SHOWN_PROBLEMS = 5


def heading(step: str, language: str) -> str:
    """Return the heading of a step, with what it is about."""
    return f"<h2>{html(t(f'step.{step}', language))}</h2>"


def drop_zone(kind: str, language: str, taken: str = "", problem: str = "") -> str:
    """Return a place to drop or choose a file, and the name of the taken one or what is wrong with it."""
    types = ",".join(READERS)
    remove = html(t("drop.remove", language))
    outcome = f'<b>{html(taken)}</b> <button type="button">{remove}</button>' if taken else ""
    return (
        f'<label class="drop"><span>{html(t(f"drop.{kind}", language))}</span>'
        f'<input type="file" accept="{types}">{outcome}</label>{note(problem, "bad")}'
    )


def preview_html(preview: Preview, language: str) -> str:
    """Return counts and the first rows of a file, and its bad rows."""
    loaded, found = preview.loaded, preview.counts
    if loaded is None or found is None:
        choose = t("file.choose_columns", language)
        hint = f"{choose}\n" if len(preview.names) > 1 else ""
        return note(hint + worded(preview.problem, language), "bad") + _table(preview)
    counts = t(
        "file.counts", language, rows=found.rows, prompts=found.prompts, format=loaded.format.name,
        responses=found.demonstrations, comparisons=found.comparisons,
    )  # fmt: skip
    shown = loaded.problems[:_SHOWN_PROBLEMS]
    bad_rows = [t("file.bad_rows", language, count=len(loaded.problems)), worded(shown, language)] if shown else []
    columns = ", ".join([*loaded.ignored, *preview.ignored])
    ignored = t("file.ignored", language, columns=columns) if columns else ""
    return note("\n".join(filter(None, [counts, ignored])), "good") + note("\n".join(bad_rows), "bad") + _table(preview)


def _table(preview: Preview) -> str:
    if not preview.rows:
        return ""
    head = "".join(f"<th>{html(name)}</th>" for name in preview.names)
    rows = "".join(f"<tr>{''.join(_cell(row.get(name), name) for name in preview.names)}</tr>" for row in preview.rows)
    return f'<table class="samples preview"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _cell(value: Any, name: str) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
    return f'<td data-name="{html(name)}"><div dir="auto">{html(cut)}</div></td>'


def model_warning(summary: Summary, language: str) -> str:
    """Return a warning of a model that has hardly read the prompts' language; empty for any other."""
    if summary.unfamiliar:
        tokens = f"{summary.tokens_per_character:.1f}"
        return note(t("guided.unfamiliar", language, tokens=tokens), "bad")
    unmeasured = summary.east_asian and summary.tokens_per_character is None
    return note(t("guided.unmeasured", language)) if unmeasured else ""


def choice_text(choice: ChosenSetting, language: str) -> str:
    """Return the reason for a setting, as plain text."""
    return t(f"choice.{choice.id}", language, **choice.values)


def choice_list(choices: Sequence[ChosenSetting], language: str) -> str:
    """Return the reasons for the chosen settings."""
    items = "".join(f"<li>{html(choice_text(choice, language))}</li>" for choice in choices)
    return f'<p class="lead">{html(t("guided.chosen", language))}</p><ul class="choices">{items}</ul>'
