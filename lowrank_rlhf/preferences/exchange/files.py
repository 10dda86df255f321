"""JSON files of other annotation tools: written with the prompts to rank, read with their finished annotations."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.contents import Contents
from lowrank_rlhf.preferences.exchange import argilla, label_studio
from lowrank_rlhf.preferences.exchange.tasks import tasks_of
from lowrank_rlhf.preferences.import_file import FileRow, refuse


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
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n" if rows else ""


def read_tasks(path: Path, tool: Tool, contents: Contents) -> list[FileRow]:
    """Return the finished annotations of a tool's JSON file as rankings and skips of the store's prompts.

    Raises `UserError` that lists the wrong items, each with its number from 1 and its key.
    """
    known, rows, errors = tasks_of(contents), [], []
    for number, item in enumerate(_items(path), 1):
        where = f"{path}: item {number}"
        try:
            rows += [FileRow(f"{where}: {key}", record) for key, record in _FORMATS[tool].rows(item, known)]
        except ValidationError as error:
            errors.append(f"{where}: {_fault(error)}")
        except ValueError as error:
            errors.append(f"{where}: {error}")
    if errors:
        refuse(errors)
    if not rows:
        raise UserError(f"{path}: no finished annotations in the file. Export it from {tool} with the annotations")
    return rows


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
