"""Run folder on disk: atomically written outputs, done marks and logs.

The process may be killed at any instant: everything marked as done is on disk, and the rest is computed again.
"""

import json
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from lowrank_rlhf.errors import RunLocked, UserError
from lowrank_rlhf.run import fault_points
from lowrank_rlhf.run.files import append_line, now, read_json, sha256, sync, sync_folder, write_atomic
from lowrank_rlhf.run.files import write_json_atomic as write_json_atomic
from lowrank_rlhf.run.results import MARKS, DoneMark, Fingerprint, Results, StageResult, Started

SCHEMA = 1
"""Schema version of a run folder, in its env.json, and of each JSON file in it (decision 0014)."""
_PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes")


class _Plan(BaseModel):
    writes: list[str]
    mark: DoneMark[StageResult]


class RunDir:
    """Folder of one run. `finish` moves outputs into it; a stage is done when its done mark exists."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = StepLog(path / "metrics.jsonl")
        """Figures over the steps of all stages."""
        self.watched = StepLog(path / "watched.jsonl")
        """Answers of the policy to a few held-out prompts at each evaluation of PPO."""

    def open(self, config_text: str) -> None:
        """Create the folder and record the config and the software it runs on."""
        write_atomic(self.path / "config.yaml", config_text)
        write_json_atomic(self.path / "env.json", _environment())

    def check_version(self) -> None:
        """Raise `UserError` for a run of a newer version of this package, whose format may differ."""
        read_record(self.path / "env.json")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run inside the block. Raises `RunLocked` if another process has it; a dead process keeps no lock."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot create the run folder: {error.strerror}") from None
        holder = self.path / "run.lock.json"
        lock = FileLock(self.path / "run.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunLocked(_in_use(self.path, holder)) from None
        try:
            write_json_atomic(holder, {"schema": SCHEMA, "pid": os.getpid(), "since": now()})
            yield
        finally:
            with suppress(OSError):  # read-only disk: the file remains, and has no meaning without the lock
                holder.unlink(missing_ok=True)
            lock.release()

    def artifact(self, name: str) -> Path:
        """Return the path of an output, which exists when its stage is done."""
        return self.path / name

    def work_path(self, stage: str) -> Path:
        """Return the path of the stage's work folder, which may not exist."""
        return self.path / "work" / stage

    def work(self, stage: str) -> Path:
        """Create and return the stage's work folder."""
        path = self.work_path(stage)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def mark(self, stage: str) -> DoneMark[StageResult] | None:
        """Return the stage's done mark, or None if it is not done. Raises `UserError` as `read_record` does."""
        form = MARKS[stage]
        found = read_record(self._mark(stage), form)
        return None if found is None else form.model_validate(found)

    def start_record(self, stage: str) -> Path:
        """Return the path of the record of the stage's start, which may not exist."""
        return self.work_path(stage) / "fingerprint.json"

    def fingerprint(self, stage: str) -> Fingerprint | None:
        """Return the fingerprint of a finished or started stage, or None. Raises `UserError` as `read_record` does."""
        if mark := self.mark(stage):
            return mark.fingerprint
        found = read_record(self.start_record(stage), Started)
        return None if found is None else Started.model_validate(found).fingerprint

    def results(self) -> Results:
        """Return the results of the finished stages. Raises `UserError` as `read_record` does."""
        marks = {stage: self.mark(stage) for stage in MARKS}
        return Results.model_validate({stage: mark.result for stage, mark in marks.items() if mark})

    def finish(self, stage: str, writes: Sequence[str], mark: dict[str, Any]) -> None:
        """Move the outputs from the work folder into the run and mark the stage done.

        Once `finish.json` is written, the stage counts as done: `recover` can complete the move.
        """
        work = self.work(stage)
        missing = [name for name in writes if not (work / name).exists()]
        if missing:
            raise RuntimeError(f"stage {stage} did not write {', '.join(missing)} into {work}")
        for name in writes:
            sync(work / name)
        fault_points.point(f"{stage}: outputs on disk")
        write_json_atomic(work / "finish.json", {"schema": SCHEMA, "writes": list(writes), "mark": mark})
        self._complete(stage, writes, mark)

    def recover(self) -> list[str]:
        """Complete an interrupted `finish` or `discard`; return the stages that were finished."""
        plans = {path.parent.name: read_record(path, _Plan) for path in sorted(self.path.glob("work/*/finish.json"))}
        for stage, plan in plans.items():
            if plan:
                self._complete(stage, plan["writes"], plan["mark"])
        self._empty_trash()
        return list(plans)

    def discard(self, stage: str, writes: Sequence[str]) -> None:
        """Delete the stage's done mark, outputs, work folder and rows in the logs."""
        self._mark(stage).unlink(missing_ok=True)  # first: outputs without a done mark are ignored
        fault_points.point(f"{stage}: mark removed")
        for path in (self.work_path(stage), *map(self.artifact, writes)):
            self._put_away(path)
            fault_points.point(f"{stage}: {path.name} put away")
        for log in (self.metrics, self.watched):
            log.truncate(stage, -1)
        self._empty_trash()

    def hashes(self, names: Iterable[str]) -> dict[str, str]:
        """Return the SHA-256 of each of the run's files and folders, without missing ones."""
        return {name: sha256(self.artifact(name)) for name in names if self.artifact(name).exists()}

    def event(self, kind: str, **details: Any) -> None:
        """Append an event to events.jsonl."""
        append_line(self.path / "events.jsonl", {"time": now(), "kind": kind, **details})

    def _mark(self, stage: str) -> Path:
        return self.path / "done" / f"{stage}.json"

    def _complete(self, stage: str, writes: Sequence[str], mark: dict[str, Any]) -> None:
        work = self.work_path(stage)
        for name in writes:
            if (work / name).exists():  # otherwise it was moved before the process was killed
                self._put_away(self.artifact(name))  # a folder cannot be renamed over another
                self.artifact(name).parent.mkdir(parents=True, exist_ok=True)
                fault_points.point(f"{name}: before it moves")
                os.replace(work / name, self.artifact(name))
                fault_points.point(f"{name}: moved")
                sync_folder(self.artifact(name).parent)
        write_json_atomic(self._mark(stage), mark)
        self._put_away(work)
        fault_points.point(f"{stage}: work put away")
        self._empty_trash()

    def _put_away(self, path: Path) -> None:
        """Remove a file or folder atomically by renaming it into the trash; `_empty_trash` deletes it."""
        if path.exists():
            os.replace(path, self.work(".trash") / uuid.uuid4().hex)

    def _empty_trash(self) -> None:
        shutil.rmtree(self.work_path(".trash"), ignore_errors=True)


def read_record(path: Path, form: type[BaseModel] | None = None) -> dict[str, Any] | None:
    """Return the contents of a JSON file of a run, or None if it is missing or truncated.

    Raises `UserError` for a file of a newer version, and for one that does not match `form`. Without a `schema` it is
    of version 1.
    """
    found = read_json(path)
    schema = (found or {}).get("schema", SCHEMA)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise UserError(f"{path}: written by a newer version of lowrank_rlhf (schema {schema}); update lowrank_rlhf")
    if found is not None and form:
        try:
            form.model_validate(found)
        except ValidationError as error:
            fault = error.errors()[0]
            raise UserError(
                f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}. The file was edited or is damaged: "
                "restore it, or delete it to compute its contents again"
            ) from None
    return found


class StepLog:
    """Log of the steps of the stages: one JSON object per line, readable while it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.also: Callable[[str, int, dict[str, Any]], None] | None = None  # called with each appended row

    def append(self, stage: str, step: int, **row: Any) -> None:
        """Append a row; NaN and infinities become null."""
        append_line(self.path, {"stage": stage, "step": step, **row})
        if self.also:
            self.also(stage, step, row)

    def read(self, stage: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the rows of one stage or of all; incomplete lines, as left by a crash, are skipped."""
        for _, row in self._lines():
            if stage is None or row["stage"] == stage:
                yield row

    def truncate(self, stage: str, step: int) -> None:
        """Delete the stage's rows after a step, so that resuming from its checkpoint repeats none."""
        if self.path.exists():
            kept = [line for line, row in self._lines() if row["stage"] != stage or row["step"] <= step]
            write_atomic(self.path, "".join(f"{line}\n" for line in kept))

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        for line in text.split("\n"):
            with suppress(json.JSONDecodeError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int) and "stage" in row:
                    yield line, row


def _environment() -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _in_use(run: Path, holder: Path) -> str:
    by = read_json(holder)
    process = f"process {by.get('pid')} since {by.get('since')}" if by else "another process"
    return f"{run}: in use by {process}. Wait until it ends, or stop it: it saves its work on SIGTERM."
