"""Runs that a person deleted: set aside beside the others, restored or removed for good."""

import os
import re
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.runs_folder import RunsFolder, cannot_write
from lowrank_rlhf.errors import Fault, UserError
from lowrank_rlhf.run.run_lock import run_lock

FOLDER = "_deleted"
"""Folder of the deleted runs inside the folder of all runs; no run can have its name."""
_NAME = re.compile(r"(?P<run>[A-Za-z0-9][A-Za-z0-9._-]{0,63})\.(?P<at>\d{8}T\d{12})")
_TIME = "%Y%m%dT%H%M%S%f"


def delete(runs: RunsFolder, name: str) -> None:
    """Set a run aside. Raises `UserError` if a process works on it or its folder cannot be moved."""
    run, folder = runs.path(name), _folder(runs)
    with jobs.changing:
        for place in (run, *(run / "exports").glob(".*")):
            jobs.check_idle(place, name)
        if not run.is_dir():
            raise jobs.not_found(run)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from None
        with run_lock(run):
            _move(run, folder / f"{name}.{datetime.now(UTC):{_TIME}}")


def deleted(runs: RunsFolder) -> list[str]:
    """Return the names of the deleted runs' folders, the last deleted first. Links and other folders are left out."""
    try:
        names = [entry.name for entry in os.scandir(_folder(runs)) if entry.is_dir(follow_symlinks=False)]
    except (OSError, UserError):
        return []
    found = {}
    for name in names:
        with suppress(UserError):
            found[name] = deleted_at(name)
    return sorted(found, key=lambda name: found[name], reverse=True)


def run_of(name: str) -> str:
    """Return the name that a deleted run had. Raises `UserError` for a name that is none of `deleted`."""
    return _parts(name)[0]


def deleted_at(name: str) -> datetime:
    """Return when a run was deleted, in the time of this machine. Raises `UserError` as `run_of` does."""
    return _parts(name)[1]


def restore(runs: RunsFolder, name: str) -> str:
    """Move a deleted run back and return its name. Raises `UserError` if another run has it, or if it cannot be moved.

    Under another name its settings would still name, and its buttons change, the other run.
    """
    source, back = _path(runs, name), run_of(name)
    if runs.path(back).exists():
        text = "{run}: another run has this name. Delete that one first, then restore this one"
        raise UserError(Fault("name_taken", text, run=back))
    _move(source, runs.path(back))
    return back


def remove(runs: RunsFolder, name: str) -> None:
    """Remove a deleted run for good. Raises `UserError` for an unknown name, and if it cannot be removed."""
    path = _path(runs, name)
    gone = path.with_name(f".{name}")  # out of the list in one step: half a run cannot be restored
    _move(path, gone)
    try:
        shutil.rmtree(gone)
    except OSError as error:
        raise cannot_write(gone, error) from None


def _parts(name: str) -> tuple[str, datetime]:
    if match := _NAME.fullmatch(name):
        with suppress(ValueError, OverflowError):
            return match["run"], datetime.strptime(match["at"], _TIME).replace(tzinfo=UTC).astimezone()
    raise UserError(Fault("invalid_run", "invalid run name: {name}", name=repr(name[:80])))


def _path(runs: RunsFolder, name: str) -> Path:
    if name not in deleted(runs):
        raise UserError(Fault("invalid_run", "invalid run name: {name}", name=repr(name[:80])))
    return _folder(runs) / name


def _folder(runs: RunsFolder) -> Path:
    folder = runs.folder / FOLDER
    if folder.is_symlink():
        raise UserError(Fault("folder_is_link", "{folder}: a link. Remove it", folder=str(folder)))
    return folder


def _move(run: Path, to: Path) -> None:
    try:
        os.rename(run, to)
    except OSError as error:
        raise cannot_write(run.parent, error) from None
