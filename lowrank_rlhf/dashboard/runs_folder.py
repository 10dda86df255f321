"""The folder of runs that a page serves."""

import math
import os
import re
import time
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.run_status import ARCHIVED, RunStatus, StatusReader, is_archived
from lowrank_rlhf.dashboard.tail import JsonlTails
from lowrank_rlhf.errors import Fault, UserError
from lowrank_rlhf.reports.alarms import Alarm

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def cannot_write(folder: Path, error: OSError) -> UserError:
    """Return the error for a folder that the page cannot write."""
    text = "{folder}: cannot be written: {reason}"
    return UserError(Fault("cannot_write", text, folder=str(folder), reason=error.strerror))


class RunsFolder:
    """Runs of a folder, by name. No name leads out of the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tails = JsonlTails()
        self._reader = StatusReader(self._tails)

    def path(self, name: str) -> Path:
        """Return the run's folder, which may not exist. Raises `UserError` for a name that leads elsewhere."""
        path = self.folder / name
        if not _RUN_NAME.fullmatch(name) or path.is_symlink():
            raise UserError(Fault("invalid_run", "invalid run name: {name}", name=repr(name[:80])))
        return path

    def free_name(self, name: str) -> str:
        """Return the first of `name`, `name-2`, `name-3`, ... that no run has.

        Raises `UserError` for an invalid name.
        """
        names = chain([name], (f"{name[:60]}-{number}" for number in count(2)))
        return next(new for new in names if not self.path(new).exists())

    def names(self) -> list[str]:
        """Return the names of all runs, the most recently changed first."""
        try:
            with os.scandir(self.folder) as entries:
                folders = [each for each in entries if _RUN_NAME.fullmatch(each.name) and not each.is_symlink()]
        except OSError:
            return []
        changed = {each.name: _changed_at(each) for each in folders}
        return sorted((name for name, at in changed.items() if at is not None), key=lambda name: -(changed[name] or 0))

    def listed(self, *also: str | None) -> list[str]:
        """Return the names without those of archived runs, unless they are among `also`."""
        return [name for name in self.names() if name in also or not is_archived(self.folder / name)]

    def archive(self, name: str, archived: bool) -> None:
        """Take a run out of the list, or back into it. Raises `UserError` if the run cannot be changed."""
        run = self.path(name)
        if not run.is_dir():
            raise jobs.not_found(run)
        try:
            if archived:
                (run / ARCHIVED).touch()
            else:
                (run / ARCHIVED).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(run, error) from None

    def status(self, name: str) -> RunStatus:
        """Return the run's current status. Raises `UserError` for an invalid name."""
        return self._reader.read(self.path(name))

    def statuses(self, names: Sequence[str], seconds: float) -> dict[str, RunStatus]:
        """Return the statuses of the runs that were read before, and of the others until the seconds are over.

        A thousand runs take half a minute to read: a caller shows the first ones and asks again.
        """
        until = time.monotonic() + seconds
        found: dict[str, RunStatus] = {}
        read = 0
        for name in names:
            status = self._reader.kept(self.folder / name)
            if status is None and (not read or time.monotonic() < until):
                status, read = self.status(name), read + 1
            if status is not None:
                found[name] = status
        return found

    def alarms(self, runs: Sequence[RunStatus], seconds: float = math.inf) -> dict[str, Sequence[Alarm]]:
        """Return the alarms of runs by name; once the seconds are over, those that were found before."""
        until = time.monotonic() + seconds
        return {run.name: self._reader.alarms(run, look=time.monotonic() < until) for run in runs}

    def rows(self, path: Path) -> tuple[list[dict[str, Any]], int]:
        """Return the rows of a run's JSONL file, none if it is missing, and a number that changes with them."""
        return self._tails.read(path)

    def training(self) -> str | None:
        """Return the name of a run with a live process, or None."""
        return next((name for name in self.names() if jobs.working(self.folder / name)), None)


def _changed_at(folder: os.DirEntry[str]) -> float | None:
    """Return when a run last changed; None for another folder, and for a run that is being moved."""
    events, job, config = (
        _time_of(f"{folder.path}/{name}") for name in ("events.jsonl", "logs/job.json", "config.yaml")
    )
    if config is None and job is None:
        return None
    return max((at for at in (events, job) if at is not None), default=_time_of(folder.path))


def _time_of(path: str) -> float | None:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return None
