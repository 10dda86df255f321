"""Everything that the page says, in English and Chinese, and which component says it."""

import json
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from lowrank_rlhf.errors import visible

LANGUAGES = {"en": "English", "zh": "中文"}
"""Those that there are, by code; the first is the one to fall back on."""
_LOCALES = Path(__file__).parent / "locales"

Block = TypeVar("Block", bound=Any)


@cache
def table(language: str) -> dict[str, str]:
    """All texts of a language by key. Raises KeyError for a language that is not there."""
    if language not in LANGUAGES:
        raise KeyError(language)
    texts: dict[str, str] = json.loads((_LOCALES / f"{language}.json").read_text(encoding="utf-8"))
    return texts


def t(key: str, language: str, **values: object) -> str:
    """The text under that key, its `{names}` filled in. Raises KeyError where there is none."""
    return table(language)[key].format(**values)


def html(text: object) -> str:
    """What a person or a model wrote, as HTML that shows it: markup escaped, control and direction marks spelt out."""
    return escape(visible(str(text)))


class Texts:
    """Which component shows which texts, so that one switch changes them all."""

    def __init__(self) -> None:
        self._shown: list[tuple[Any, dict[str, str]]] = []

    def add(self, component: Block, **keys: str) -> Block:
        """Note that these properties of a component are texts: `add(gr.Button(), value="runs.stop")`."""
        for name, key in keys.items():
            setattr(component, name, t(key, next(iter(LANGUAGES))))
        self._shown.append((component, keys))
        return component

    @property
    def components(self) -> list[Any]:
        """All that were noted, in order."""
        return [component for component, _ in self._shown]

    def updates(self, language: str) -> list[dict[str, Any]]:
        """One update for each of `components`."""
        found: list[dict[str, Any]] = [
            {name: t(key, language) for name, key in keys.items()} for _, keys in self._shown
        ]
        return [gr.update(**texts) for texts in found]
