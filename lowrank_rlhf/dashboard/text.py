"""Texts of the page in English and Chinese."""

import json
from functools import cache
from html import escape
from pathlib import Path

from lowrank_rlhf.errors import visible

LANGUAGES = {"en": "English", "zh": "中文"}
"""Language names by code; the first is the fallback."""
LANGUAGE_LABEL = "Language / 语言"
"""Name of the switch for screen readers, which Gradio would call "Radio"."""
_TERMS = ("sft", "reward_model", "ppo", "kl")
"""Terms that the texts of `explained` may contain."""
_LOCALES = Path(__file__).parent / "locales"


@cache
def table(language: str) -> dict[str, str]:
    """Return all texts of a language by key. Raises KeyError for an unknown language."""
    if language not in LANGUAGES:
        raise KeyError(language)
    texts: dict[str, str] = json.loads((_LOCALES / f"{language}.json").read_text(encoding="utf-8"))
    return texts


def t(key: str, language: str, **values: object) -> str:
    """Return a text with its `{names}` filled in. Raises KeyError for an unknown key."""
    return table(language)[key].format(**values)


def explained(key: str, language: str, **values: object) -> str:
    """Return a text as HTML, its `{names}` filled in; `{kl}` and the other terms show their meaning when pointed at."""
    shown = {name: html(value) for name, value in values.items()} | {term: _term(term, language) for term in _TERMS}
    return html(table(language)[key]).format(**shown)


def _term(term: str, language: str) -> str:
    word, meaning = t(f"term.{term}", language), t(f"meaning.{term}", language)
    return f'<abbr tabindex="0" title="{html(meaning)}">{html(word)}</abbr>'


def html(text: object) -> str:
    """Return a person's or model's text as HTML: markup, control characters and direction marks escaped."""
    return escape(visible(str(text)))
