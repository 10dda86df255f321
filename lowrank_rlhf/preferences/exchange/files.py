"""JSON files of other annotation tools: prompts to rank or rankings written, finished annotations read."""

import json
from collections import defaultdict
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.contents import Contents, SavedRanking, Skip
from lowrank_rlhf.preferences.exchange import argilla, label_studio
from lowrank_rlhf.preferences.exchange.tasks import tasks_of
from lowrank_rlhf.preferences.import_file import FileRow, refuse
from lowrank_rlhf.run.records import Ranking


class Tool(StrEnum):
    """Annotation tool."""

    ARGILLA = "argilla"
    LABEL_STUDIO = "label-studio"


_FORMATS = {Tool.ARGILLA: argilla, Tool.LABEL_STUDIO: label_studio}


def to_tasks(contents: Contents, tool: Tool) -> str:
    """Return the prompts that nobody has ranked or decided as the tool's JSON; empty if none is left.

    Attention checks are left out.
    """
    done = {saved.ranking.prompt_id for saved in contents.history if not saved.withdrawn}
    done |= {ranking.prompt_id for ranking in contents.decisions} | {check.prompt_id for check in contents.checks}
    rows = [_FORMATS[tool].record(task) for name, task in tasks_of(contents).items() if name not in done]
    return _json(rows) if rows else ""


class RankedTasks(NamedTuple):
    """Rankings as a tool's JSON; `text` is empty without any.

    `left_out`: rankings that the tool's format cannot have. `unknown`: annotators who cannot be users of the tool.
    """

    text: str
    rankings: int
    left_out: int
    unknown: tuple[str, ...]


def to_ranked_tasks(contents: Contents, tool: Tool) -> RankedTasks:
    """Return the rankings that count, with their prompts, as the tool's JSON; attention checks are left out."""
    tasks, current, form = tasks_of(contents), contents.current(), _FORMATS[tool]
    of_prompt = defaultdict(list)
    for ranking in current:
        if form.holds(tasks[ranking.prompt_id], ranking):
            of_prompt[ranking.prompt_id].append(ranking)
    rows = [form.ranked(task, of_prompt[name]) for name, task in tasks.items() if name in of_prompt]
    written = [ranking for found in of_prompt.values() for ranking in found]
    names = sorted({ranking.annotator for ranking in written if not form.knows(ranking.annotator)})
    text = _json({"items": rows} if tool is Tool.ARGILLA else rows) if rows else ""
    return RankedTasks(text, len(written), len(current) - len(written), tuple(names))


def _json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def read_tasks(path: Path, tool: Tool, contents: Contents) -> list[FileRow]:
    """Return the finished annotations of a tool's JSON file as rankings and skips of the store's prompts.

    A ranking of which the store has the same order by the same annotator is the store's, with all that the file lacks.
    Raises `UserError` that lists the wrong items, each with its number from 1 and its key.
    """
    known, rows, errors = tasks_of(contents), [], []
    own = {_order(ranking): SavedRanking(ranking=ranking) for ranking in contents.current()}
    for number, item in enumerate(_items(path), 1):
        where = f"{path}: item {number}"
        try:
            for key, record in _FORMATS[tool].rows(item, known):
                same = None if isinstance(record, Skip) else own.get(_order(record.ranking))
                rows.append(FileRow(f"{where}: {key}", same or record))
        except ValidationError as error:
            errors.append(f"{where}: {_fault(error)}")
        except ValueError as error:
            errors.append(f"{where}: {error}")
    if errors:
        refuse(errors)
    if not rows:
        raise UserError(f"{path}: no finished annotations in the file. Export it from {tool} with the annotations")
    return rows


def _order(ranking: Ranking) -> tuple[str, str, tuple[frozenset[str], ...]]:
    """Return what a tool's file has of a ranking."""
    return ranking.annotator, ranking.prompt_id, tuple(map(frozenset, ranking.tiers))


def _fault(error: ValidationError) -> str:
    """Return the place and the words of the first fault."""
    first = error.errors()[0]
    words = "not an object" if first["type"] == "model_type" else first["msg"]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), words)))


def _items(path: Path) -> list[Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}. Export the annotations as JSON") from None
    found = found.get("items") if isinstance(found, dict) else found  # the API of Argilla's server
    if not isinstance(found, list):
        raise UserError(f"{path}: not a list of tasks. Export the annotations as JSON")
    return found
