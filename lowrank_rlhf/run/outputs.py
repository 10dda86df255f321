"""Outputs of a finished stage: sizes, checksums, and earlier results of a stage that is being repeated."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lowrank_rlhf.run import fault_points
from lowrank_rlhf.run.files import file_names, read_json, sha256, sync_folder, write_atomic, write_json_atomic
from lowrank_rlhf.run.result_parts import FileSum
from lowrank_rlhf.run.step_log import StepLog


def file_sums(folder: Path, names: Iterable[str]) -> dict[str, FileSum]:
    """Return size and SHA-256 of each file: of the named files, and of all files in the named folders."""
    files = [inner for name in names for inner in _files(folder, name)]
    return {name: FileSum(bytes=(folder / name).stat().st_size, sha256=sha256(folder / name)) for name in files}


def faults(folder: Path, sums: Mapping[str, FileSum]) -> Iterator[str]:
    """Yield a message for each file that is missing, cannot be read, or differs from its recorded size or checksum."""
    for name, recorded in sums.items():
        if fault := file_fault(folder / name, name, recorded.sha256, recorded.bytes):
            yield fault


def file_fault(path: Path, name: str, digest: str, size: int | None = None) -> str | None:
    """Compare a file with its recorded SHA-256 and, if known, size; return a message if it differs."""
    try:
        if path.is_dir():
            return f"{name} is a folder instead of a file"
        found = path.stat().st_size
        if size is not None and found != size:
            return f"{name} is {found} bytes instead of {size}"
        return None if sha256(path) == digest else f"{name} does not match its recorded sha256"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"


def _files(folder: Path, name: str) -> list[str]:
    path = folder / name
    return [f"{name}/{inner}" for inner in file_names(path)] if path.is_dir() else [name]


class EarlierResults:
    """Results of a finished stage that is being repeated, in `before/<stage>/` of the run until the new ones are done.

    The process may be killed at any instant: `resume` completes the move.
    """

    def __init__(self, run: Path, stage: str, logs: Sequence[StepLog], put_away: Callable[[Path], None]) -> None:
        self.folder = run / "before" / stage
        self._run, self._stage, self._logs, self._put_away = run, stage, logs, put_away
        self._record, self._mark = self.folder / "moved.json", self.folder / "done.json"

    def __bool__(self) -> bool:
        """Return True if results of the stage were set aside."""
        return self._mark.is_file()

    def keep(self, mark: Path, writes: Sequence[str]) -> None:
        """Move the done mark and the outputs here, and copy the config and the rows in the logs."""
        self._put_away(self.folder)
        for log in self._logs:
            write_atomic(self.folder / log.path.name, "".join(f"{line}\n" for line in log.lines(self._stage)))
        if (config := self._run / "config.yaml").is_file():
            write_atomic(self.folder / config.name, config.read_text(encoding="utf-8"))
        self._note("moving", mark, writes)
        self.resume()

    def put_back(self) -> None:
        """Move the results back, in place of newer ones, with their config and rows."""
        record = read_json(self._record) or {}
        self._note("returning", self._run / record["mark"], record["writes"])
        self.resume()

    def drop(self) -> None:
        """Delete the results: newer ones are done."""
        self._put_away(self.folder)

    def resume(self) -> None:
        """Complete an interrupted move in its direction."""
        record = read_json(self._record) or {}
        if record.get("state") == "moving":
            self._move_here(self._run / record["mark"], record["writes"])
            self._note("aside", self._run / record["mark"], record["writes"])
        elif record.get("state") == "returning":
            self._move_back(self._run / record["mark"], record["writes"])

    def _move_here(self, mark: Path, writes: Sequence[str]) -> None:
        if mark.exists():
            os.replace(mark, self._mark)  # first: outputs without a done mark are ignored
        fault_points.point(f"{self._stage}: mark set aside")
        for name in writes:
            _move(self._run / name, self.folder / "files" / name)
            fault_points.point(f"{self._stage}: {name} set aside")

    def _move_back(self, mark: Path, writes: Sequence[str]) -> None:
        for log in self._logs:
            kept = self.folder / log.path.name
            log.replace(self._stage, kept.read_text(encoding="utf-8").splitlines() if kept.is_file() else [])
        for name in writes:
            if (self.folder / "files" / name).exists():
                self._put_away(self._run / name)
                _move(self.folder / "files" / name, self._run / name)
                fault_points.point(f"{self._stage}: {name} put back")
        if (config := self.folder / "config.yaml").is_file():
            write_atomic(self._run / config.name, config.read_text(encoding="utf-8"))
        if self._mark.exists():
            _move(self._mark, mark)  # last: the stage is done again
        fault_points.point(f"{self._stage}: mark put back")
        self.drop()

    def _note(self, state: str, mark: Path, writes: Sequence[str]) -> None:
        where = mark.relative_to(self._run).as_posix()
        write_json_atomic(self._record, {"schema": 1, "state": state, "mark": where, "writes": list(writes)})


def _move(path: Path, target: Path) -> None:
    if path.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
        sync_folder(target.parent)
