"""Runs that a person deleted: set aside beside the others, restored or removed for good."""

import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.errors import Fault, UserError

FOLDER = "_deleted"
"""Folder of the deleted runs inside the folder of all runs; no run can have its name."""
_NAME = re.compile(r"(?P<run>[A-Za-z0-9][A-Za-z0-9._-]{0,63})\.(?P<at>\d{8}T\d{12})")
_TIME = "%Y%m%dT%H%M%S%f"


def delete(runs: RunsFolder, name: str) -> None:
    """Set a run aside. Raises `UserError` if a process works on it or its folder cannot be moved."""
    run = runs.path(name)
    for place in (run, *(run / "exports").glob(".*")):
        if worker := jobs.working(place):
            text = "{run}: {process} is already working on this run"
            raise UserError(Fault("already_working", text, run=name, process=worker.name))
    folder = _folder(runs)
    folder.mkdir(exist_ok=True)
    _move(run, folder / f"{name}.{datetime.now(UTC):{_TIME}}")


def deleted(runs: RunsFolder) -> list[str]:
    """Return the names of the deleted runs' folders, the last deleted first."""
    try:
        names = [entry.name for entry in os.scandir(_folder(runs)) if _NAME.fullmatch(entry.name)]
    except (OSError, UserError):
        return []
    return sorted(names, key=lambda name: _match(name)["at"], reverse=True)


def run_of(name: str) -> str:
    """Return the name that a deleted run had. Raises `UserError` for a name that is none of `deleted`."""
    return _match(name)["run"]


def deleted_at(name: str) -> datetime:
    """Return when a run was deleted. Raises `UserError` as `run_of` does."""
    return datetime.strptime(_match(name)["at"], _TIME).replace(tzinfo=UTC)


def restore(runs: RunsFolder, name: str) -> str:
    """Move a deleted run back, under another name if its own is taken, and return that.

    Raises `UserError` for an unknown name, and if it cannot be moved.
    """
    back = runs.free_name(run_of(name))
    _move(_folder(runs) / name, runs.path(back))
    return back


def remove(runs: RunsFolder, name: str) -> None:
    """Remove a deleted run for good. Raises `UserError` for an unknown name, and if it cannot be removed."""
    run_of(name)
    try:
        shutil.rmtree(_folder(runs) / name)
    except OSError as error:
        raise _refused(_folder(runs), error) from None


def _match(name: str) -> re.Match[str]:
    if match := _NAME.fullmatch(name):
        return match
    raise UserError(Fault("invalid_run", "invalid run name: {name}", name=repr(name[:80])))


def _folder(runs: RunsFolder) -> Path:
    folder = runs.folder / FOLDER
    if folder.is_symlink():
        raise UserError(Fault("folder_is_link", "{folder}: a link. Remove it", folder=str(folder)))
    return folder


def _move(run: Path, to: Path) -> None:
    try:
        os.rename(run, to)
    except OSError as error:
        raise _refused(run.parent, error) from None


def _refused(folder: Path, error: OSError) -> UserError:
    text = "{folder}: cannot be written: {reason}"
    return UserError(Fault("cannot_write", text, folder=str(folder), reason=error.strerror))
