"""Texts of reports, alarms and charts in English and Chinese: one JSON file per language with the same keys."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Union

LANGUAGES = ("en", "zh")
"""Codes of the languages; the first is the default."""
_LOCALES = Path(__file__).parent / "locales"

Text = Union[str, "Phrase"]


@dataclass(frozen=True)
class Phrase:
    """Key of a text with the values of its placeholders, to be rendered in a language."""

    key: str
    values: Mapping[str, Text] = field(default_factory=dict)


class Locale:
    """The texts of one language."""

    def __init__(self, language: str) -> None:
        """Read the language's file. Raises `KeyError` for an unknown language."""
        if language not in LANGUAGES:
            raise KeyError(language)
        self.language = language
        self.texts: dict[str, str] = json.loads((_LOCALES / f"{language}.json").read_text(encoding="utf-8"))

    def __call__(self, key: str, **values: object) -> str:
        """Return the text with its placeholders filled in. Raises `KeyError` for an unknown key."""
        return self.texts[key].format(**values)

    def render(self, text: Text) -> str:
        """Return a phrase in this language, the phrases among its values too; a plain string is returned unchanged."""
        if isinstance(text, str):
            return text
        return self(text.key, **{name: self.render(value) for name, value in text.values.items()})


@cache
def locale(language: str = LANGUAGES[0]) -> Locale:
    """Return the texts of a language, read once. Raises `KeyError` for an unknown language."""
    return Locale(language)


ENGLISH = locale()
