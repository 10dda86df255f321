"""Words of errors on the page: in the reader's language, with remedies for people without a terminal."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from lowrank_rlhf.dashboard.text import table
from lowrank_rlhf.errors import Fault, UserError
from lowrank_rlhf.reports.locale import locale

_LOCALES = Path(__file__).parent / "locales"


@cache
def fault_texts(language: str) -> dict[str, str]:
    """Return the page's texts by the key of a fault. English has those only that differ from the terminal's."""
    own: dict[str, str] = json.loads((_LOCALES / f"errors.{language}.json").read_text(encoding="utf-8"))
    return locale(language).texts | own  # the report's words for a weak reward model


def error_text(error: UserError, language: str) -> str:
    """Return the page's words for an error."""
    return worded(error.parts, language)


def worded(parts: Iterable[str], language: str) -> str:
    """Return the page's words for the parts of an error, one below the other."""
    return "\n".join(str(_worded(part, language)) for part in parts)


def _worded(part: Any, language: str) -> Any:
    """Return a part with its values in a language; a text without a key, and any other value, as it is.

    `{label[KEY]}` in a text is the name of one of the page's buttons and places.
    """
    if isinstance(part, tuple):
        return "".join(str(_worded(inner, language)) for inner in part)
    if not isinstance(part, Fault) or part.key not in fault_texts(language):
        return part
    values = {name: _worded(value, language) for name, value in part.values.items()}
    try:
        return fault_texts(language)[part.key].format(**values, label=table(language))
    except (LookupError, TypeError, ValueError):  # recorded by another version
        return part
