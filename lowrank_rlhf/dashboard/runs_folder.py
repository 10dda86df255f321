"""The folder of runs that a page serves."""

import re
from itertools import chain, count
from pathlib import Path
from typing import Any

from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.run_status import RunStatus, StatusReader
from lowrank_rlhf.dashboard.tail import JsonlTails
from lowrank_rlhf.errors import Fault, UserError

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


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
            folders = [path for path in self.folder.iterdir() if _RUN_NAME.fullmatch(path.name)]
        except OSError:
            return []
        runs = [path for path in folders if not path.is_symlink() and _is_run(path)]
        return [path.name for path in sorted(runs, key=_changed_at, reverse=True)]

    def status(self, name: str) -> RunStatus:
        """Return the run's current status. Raises `UserError` for an invalid name."""
        return self._reader.read(self.path(name))

    def rows(self, path: Path) -> tuple[list[dict[str, Any]], int]:
        """Return the rows of a run's JSONL file, none if it is missing, and a number that changes with them."""
        return self._tails.read(path)

    def training(self) -> str | None:
        """Return the name of a run with a live process, or None."""
        return next((name for name in self.names() if jobs.working(self.folder / name)), None)


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() or (path / "logs" / "job.json").is_file()


def _changed_at(path: Path) -> float:
    times = [file.stat().st_mtime for file in (path / "events.jsonl", path / "logs" / "job.json") if file.exists()]
    return max(times, default=path.stat().st_mtime)
