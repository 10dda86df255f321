"""Texts of the ranking page in English and Chinese."""

import json
from functools import cache
from pathlib import Path

from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.run_status import RunStatus, StatusReader
from lowrank_rlhf.dashboard.tail import JsonlTails
from lowrank_rlhf.preferences.project import NothingToRank, Project

LANGUAGES = ("en", "zh")
_LOCALES = Path(__file__).parents[1] / "locales"


@cache
def texts(language: str) -> dict[str, str]:
    """Return all texts by key. Raises KeyError for an unknown language."""
    if language not in LANGUAGES:
        raise KeyError(language)
    found: dict[str, str] = json.loads((_LOCALES / f"ranking.{language}.json").read_text(encoding="utf-8"))
    return found


def say(key: str, language: str, **values: object) -> str:
    """Return the text of a key with its `{names}` filled in. Raises KeyError for an unknown key."""
    return texts(language)[key].format(**values)


def percent(share: float) -> str:
    """Return a share as a percentage: `70 %`."""
    return f"{100 * share:.0f} %"


def nothing_to_rank_text(error: NothingToRank, language: str) -> str:
    """Return the reason why there is nothing to rank; of a run at work, how far it is."""
    if error.run is not None and (run := _at_work(error.run)):
        if run.stage == "sample" and run.progress:
            return say("nothing.sampling", language, done=run.progress.done, total=run.progress.total)
        return say("nothing.at_work", language, stage=run.stage or "-")
    return say(f"nothing.{error.reason}", language, command=error.command)


def at_work_text(project: Project, language: str) -> str:
    """Return the stage of a run on which a process works, and whether more answers will follow; empty for others."""
    if (run := _at_work(project.folder)) is None:
        return ""
    following = project.config is not None and project.round < project.config.rounds
    return say("next.at_work_round" if following else "next.at_work", language, stage=run.stage or "-")


def _at_work(folder: Path) -> RunStatus | None:
    return StatusReader(JsonlTails()).read(folder) if jobs.working(folder) else None


def language_of(accepted: str) -> str:
    """Return the first supported language of an Accept-Language header."""
    named = [part.split(";")[0].strip().lower().partition("-")[0] for part in accepted.split(",")]
    return next((one for one in named if one in LANGUAGES), LANGUAGES[0])
