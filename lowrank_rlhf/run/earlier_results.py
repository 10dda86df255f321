"""Earlier results of a run, in its folder `before/` while `--redo` repeats their stages.

There is one generation: what the run had before the first redo, until all stages that were set aside are done again.
The process may be killed at any instant: `resume` completes an interrupted move in its direction.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run import fault_points
from lowrank_rlhf.run.files import SCHEMA, Trash, read_lines, read_record, sync_folder, write_atomic, write_json_atomic
from lowrank_rlhf.run.results.rounds import prefix, split, stages_in
from lowrank_rlhf.run.step_log import StepLog, logs_in


class _Record(BaseModel):
    """Record of a stage that was set aside (`before/<stage>/record.json`)."""

    state: Literal["moving", "aside"]
    paths: list[str]
    """Files and folders of the stage in the run folder, its done mark first."""
    kept: list[str]
    """Those of them that existed."""


class EarlierResults:
    """Results and unfinished work that a redo set aside: `before/<stage>/files/`, arranged as in the run folder."""

    def __init__(self, run: Path, trash: Trash) -> None:
        self.folder = run / "before"
        self._run, self._trash = run, trash
        self._config, self._returning = self.folder / "config.yaml", self.folder / "returning.json"

    def stages(self) -> list[str]:
        """Return the stages of which something was set aside."""
        known = stages_in(self.folder)
        return [stage for stage in known if self._record(stage).is_file() and self.files(stage).is_dir()]

    def has(self, stage: str) -> bool:
        """Return True if the stage was set aside, even if it had no results: `put_back` replaces newer ones."""
        return self._read(stage) is not None

    def files(self, stage: str) -> Path:
        """Return the folder of a stage's files, which may not exist."""
        return self.folder / stage / "files"

    def check(self) -> None:
        """Raise `UserError` for earlier results that another version has set aside: this one cannot restore them."""
        if not self._is_known():
            raise UserError(
                f"{self.folder}: earlier results of a redo with another version. "
                "Restore them with that version (--undo-redo), or move the folder away."
            )

    def set_aside(self, outputs: Mapping[str, Sequence[str]]) -> None:
        """Move the results and unfinished work of stages here, with their log rows, or delete them if earlier ones are.

        `outputs` are the stages' outputs. The last stage goes first: after an interruption no remaining one depends on
        one that was set aside.
        """
        paths = {stage: [_mark(stage), *writes, _work(stage)] for stage, writes in outputs.items()}
        kept = {stage: [path for path in paths[stage] if (self._run / path).exists()] for stage in paths}
        worth_it = bool(self.stages()) or any(kept.values())
        for stage in reversed(paths):
            if worth_it and self._read(stage) is None:
                self._copy_texts(stage)
                record = _Record(state="moving", paths=paths[stage], kept=kept[stage])
                self._write(stage, record)
                self._move_here(stage, record)
            else:
                self._put_away(stage, paths[stage])
        self._trash.empty()

    def put_back(self) -> list[str]:
        """Restore everything in place of newer results, with config and log rows; return the stages."""
        found = self.stages()
        if found:
            write_json_atomic(self._returning, {"schema": SCHEMA})
            self.resume()
        return found

    def drop_if_replaced(self, wanted: Collection[str]) -> None:
        """Delete the earlier results if those of their stages that are `wanted`, the config's, are done again."""
        aside = self.stages()
        awaited = [stage for stage in aside if stage in wanted]
        replaced = all((self._run / _mark(stage)).exists() for stage in awaited)
        if self.folder.is_dir() and self._is_known() and replaced and bool(awaited) == bool(aside):
            self._trash.put(self.folder)
            fault_points.point("earlier results put away")
            self._trash.empty()

    def resume(self) -> None:
        """Complete an interrupted `set_aside` or `put_back`."""
        returning = self._returning.exists()
        for stage, record in list(self._records()):
            if returning:
                self._move_back(stage, record)
            elif record.state == "moving":
                self._move_here(stage, record)
        if returning:
            if self._config.is_file():
                write_atomic(self._run / self._config.name, self._config.read_text(encoding="utf-8"))
            self._trash.put(self.folder)
            self._trash.empty()

    def _is_known(self) -> bool:
        """Return False if a folder without a record has more than copied log rows."""
        logs = {log.path.name for log in logs_in(self.folder)}
        folders = [*self.folder.glob("*/"), *self.folder.glob("round-*/*/")]
        return all(
            path.name in logs or path.name.startswith(".")  # temporary
            for folder in folders
            if not self._record(folder.relative_to(self.folder).as_posix()).exists()
            for path in folder.iterdir()
            if path not in folders  # of a later round
        )

    def _put_away(self, stage: str, paths: Sequence[str]) -> None:
        for path in paths:  # the done mark first: outputs without one are ignored
            self._trash.put(self._run / path)
            fault_points.point(f"{stage}: {path} put away")
        self._truncate_logs(stage)

    def _move_here(self, stage: str, record: _Record) -> None:
        for path in record.kept:
            if not (self.files(stage) / path).exists():
                _move(self._run / path, self.files(stage) / path)
            fault_points.point(f"{stage}: {path} set aside")
        self._truncate_logs(stage)
        self._write(stage, record.model_copy(update={"state": "aside"}))

    def _move_back(self, stage: str, record: _Record) -> None:
        mark, *others = record.paths
        if mark not in record.kept or (self.files(stage) / mark).exists():
            self._trash.put(self._run / mark)  # the newer one
        for log in self._logs(stage):
            log.replace(split(stage)[1], [line for line in read_lines(self.folder / stage / log.path.name) if line])
        for path in (*others, mark):  # with its mark the stage is done again
            kept = self.files(stage) / path
            if path not in record.kept or kept.exists():
                self._trash.put(self._run / path)
            if kept.exists():
                _move(kept, self._run / path)
            fault_points.point(f"{stage}: {path} put back")

    def _copy_texts(self, stage: str) -> None:
        """Copy the stage's log rows, and the config of the generation's first stage."""
        self._trash.put(self.folder / stage)
        config = self._run / self._config.name
        if config.is_file() and not self._config.exists():
            write_atomic(self._config, config.read_text(encoding="utf-8"))
        for log in self._logs(stage):
            rows = log.lines(split(stage)[1])
            write_atomic(self.folder / stage / log.path.name, "".join(f"{line}\n" for line in rows))

    def _truncate_logs(self, stage: str) -> None:
        for log in self._logs(stage):
            log.truncate(split(stage)[1], -1)

    def _logs(self, stage: str) -> Sequence[StepLog]:
        return logs_in(self._run / prefix(split(stage)[0]))

    def _record(self, stage: str) -> Path:
        return self.folder / stage / "record.json"

    def _records(self) -> Iterator[tuple[str, _Record]]:
        for stage in stages_in(self.folder):
            if record := self._read(stage):
                yield stage, record

    def _read(self, stage: str) -> _Record | None:
        found = read_record(self._record(stage), _Record)
        return None if found is None else _Record.model_validate(found)

    def _write(self, stage: str, record: _Record) -> None:
        write_json_atomic(self._record(stage), {"schema": SCHEMA, **record.model_dump()})


def _mark(stage: str) -> str:
    number, plain = split(stage)
    return f"{prefix(number)}done/{plain}.json"


def _work(stage: str) -> str:
    number, plain = split(stage)
    return f"{prefix(number)}work/{plain}"


def _move(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)
    sync_folder(target.parent)
