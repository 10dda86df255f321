"""Everything that the ranking page says, in English and Chinese."""

import json
from functools import cache
from pathlib import Path

from lowrank_rlhf.preferences.project import NothingToRank

LANGUAGES = ("en", "zh")
_LOCALES = Path(__file__).parents[1] / "locales"


@cache
def texts(language: str) -> dict[str, str]:
    """All texts by key. Raises KeyError for a language that is not there."""
    if language not in LANGUAGES:
        raise KeyError(language)
    found: dict[str, str] = json.loads((_LOCALES / f"ranking.{language}.json").read_text(encoding="utf-8"))
    return found


def say(key: str, language: str, **values: object) -> str:
    """The text under that key, its `{names}` filled in. Raises KeyError where there is none."""
    return texts(language)[key].format(**values)


def why_nothing(error: NothingToRank, language: str) -> str:
    """Why there is nothing to rank."""
    return say(f"nothing.{error.kind}", language, command=error.command)


def language_of(accepted: str) -> str:
    """The language for a browser that sends this Accept-Language header: of ours the one that it names first."""
    named = [part.split(";")[0].strip().lower().partition("-")[0] for part in accepted.split(",")]
    return next((one for one in named if one in LANGUAGES), LANGUAGES[0])
