"""Run folder on disk: atomically written outputs, done marks and logs.

The process may be killed at any instant: everything marked as done is on disk, and the rest is computed again.
"""

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lowrank_rlhf.errors import Fault, StaleRun, UserError
from lowrank_rlhf.run import fault_points, outputs
from lowrank_rlhf.run.earlier_results import EarlierResults
from lowrank_rlhf.run.files import (
    SCHEMA,
    Trash,
    append_line,
    now,
    read_record,
    sha256,
    sync,
    sync_folder,
    write_atomic,
    write_json_atomic,
)
from lowrank_rlhf.run.results import MARKS, DoneMark, Fingerprint, Results, StageResult, Started
from lowrank_rlhf.run.results.rounds import SFT, SFT_ADAPTER, prefix, rounds_in, split, stages_in
from lowrank_rlhf.run.run_lock import run_lock, software
from lowrank_rlhf.run.step_log import NO_ROWS, logs_in

_RESERVED = re.compile(r"((con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*\.)", re.IGNORECASE)


class _Plan(BaseModel):
    writes: list[str]
    mark: DoneMark[StageResult]


class RunDir:
    """Folder of one run, or of a later round in it; stages and files of other rounds are named as in `rounds`.

    `finish` moves outputs into it; a stage is done when its done mark exists. Every round has the SFT adapter.
    """

    def __init__(self, run: Path, number: int = 1) -> None:
        self.run, self.number = run, number
        """Folder of the run, and the round."""
        self.path = run / prefix(number)
        """Folder of the round; the run's in the first."""
        self.metrics, self.watched, self.rollouts = self.logs = logs_in(self.path)
        """Figures over the steps of all stages; answers of the policy to a few held-out prompts at each evaluation; a
        few answers of PPO's rollouts, token by token."""
        self._trash = Trash(self.path / "work" / ".trash")

    def round(self, number: int) -> "RunDir":
        """Return the folder of a round of this run."""
        return self if number == self.number else RunDir(self.run, number)

    @property
    def rounds(self) -> "list[RunDir]":
        """Folders of the rounds that were started, the first one always."""
        return [self.round(number) for number in rounds_in(self.run)]

    @property
    def newest(self) -> "RunDir":
        """Folder of the newest round with a finished policy; the first one if there is none."""
        return next(
            (each for each in reversed(self.rounds) if each.artifact("adapters/policy").is_dir()), self.round(1)
        )

    @property
    def up_to_this(self) -> "list[RunDir]":
        """Folders of the rounds from the first to this one."""
        return [self.round(number) for number in range(1, self.number + 1)]

    def open(self, config_text: str) -> None:
        """Create the folder and record the config and the software it runs on."""
        write_atomic(self.path / "config.yaml", config_text)
        write_json_atomic(self.path / "env.json", {"schema": SCHEMA, **software()})

    def check(self) -> None:
        """Raise `UserError` for a run of a newer version, whose format may differ, and for a bad name of a new run."""
        check_new_name(self.path)
        read_record(self.path / "env.json")

    def lock(self) -> AbstractContextManager[None]:
        """Lock the run inside a block, as `run_lock` does."""
        return run_lock(self.path)

    def artifact(self, name: str) -> Path:
        """Return the path of an output, which exists when its stage is done."""
        return (self.run if name == SFT_ADAPTER else self.path) / name

    def work_path(self, stage: str) -> Path:
        """Return the path of the stage's work folder, which may not exist."""
        folder, plain = self._place(stage)
        return folder / "work" / plain

    def work(self, stage: str) -> Path:
        """Create and return the stage's work folder."""
        path = self.work_path(stage)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def mark(self, stage: str) -> DoneMark[StageResult] | None:
        """Return the stage's done mark, or None if it is not done. Raises `UserError` as `read_record` does."""
        folder, plain = self._place(stage)
        form = MARKS[plain]
        found = read_record(folder / "done" / f"{plain}.json", form)
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
        """Return the results of this round's finished stages. Raises `UserError` as `read_record` does."""
        marks = {stage: self.mark(stage) for stage in MARKS}
        return Results.model_validate({stage: mark.result for stage, mark in marks.items() if mark})

    def faults(self, stage: str, names: Iterable[str] | None = None) -> list[str]:
        """Return a message for each output of a finished stage, or each of these, that changed since it finished.

        Empty for a mark of an older version, which has no checksums.
        """
        mark = self.mark(stage)
        sums = (mark and mark.outputs) or {}
        chosen = None if names is None else [split(name)[1] for name in names]
        wanted = {name: found for name, found in sums.items() if chosen is None or _is_in(name, chosen)}
        return list(outputs.faults(self._place(stage)[0], wanted))

    def log_faults(self, stage: str) -> list[str]:
        """Return a message for each log in which the recorded rows of a finished stage changed or are missing."""
        mark, (folder, plain) = self.mark(stage), self._place(stage)
        recorded = mark.logs if mark else {}
        return [
            f"{log.path.name}: the rows of stage {stage} do not match their recorded sha256 ({found.rows} readable "
            f"rows, {recorded[log.path.name].rows} recorded). Restore the file, or delete the key logs in "
            f"{prefix(split(stage)[0])}done/{plain}.json to continue without its rows"
            for log in logs_in(folder)
            if log.path.name in recorded and (found := log.sums().get(plain, NO_ROWS)) != recorded[log.path.name]
        ]

    def damage(self) -> list[str]:
        """Return a message for each damaged done mark, output and log of the finished stages of all rounds."""
        found = []
        for stage in stages_in(self.run):
            try:
                found += [*self.faults(stage), *self.log_faults(stage)]
            except UserError as error:
                found.append(str(error))
        return found

    def check_outputs(self, *names: str) -> None:
        """Raise `StaleRun` if one of these outputs, files or folders, changed since its stage finished."""
        for stage in MARKS:
            if found := self.faults(stage, names):
                name = stage if stage == SFT else f"{prefix(self.number)}{stage}"
                text = (
                    "{folder}: {faults}. Restore the file from a copy, or repeat stage {stage}: python -m lowrank_rlhf "
                    "run {config} --runs {runs} --redo {stage}"
                )
                values = {"config": str(self.run / "config.yaml"), "runs": str(self.run.parent), "stage": name}
                fault = Fault("damaged_output", text, folder=str(self.path), faults="; ".join(found), **values)
                raise StaleRun(fault)

    def finish(self, stage: str, writes: Sequence[str], mark: dict[str, Any]) -> None:
        """Move the outputs from the work folder into the run and mark the stage done.

        Once `finish.json` is written, the stage counts as done: `recover` can complete the move.
        """
        number, plain = split(stage)
        if number > 1:
            self.round(number).finish(plain, [split(name)[1] for name in writes], mark)
            return
        work = self.work(stage)
        missing = [name for name in writes if not (work / name).exists()]
        if missing:
            raise RuntimeError(f"stage {stage} did not write {', '.join(missing)} into {work}")
        for name in writes:
            sync(work / name)
        for log in self.logs:
            if log.path.exists():
                sync(log.path)
        fault_points.point(f"{stage}: outputs on disk")
        mark = mark | self._sums(stage, writes)
        write_json_atomic(work / "finish.json", {"schema": SCHEMA, "writes": list(writes), "mark": mark})
        self._complete(stage, writes, mark)

    def recover(self) -> list[str]:
        """Complete an interrupted `finish`, or move of earlier results; return the stages that were finished."""
        finished = [f"{prefix(each.number)}{stage}" for each in self.rounds for stage in each._finish_interrupted()]
        self.earlier.resume()
        self._trash.empty()
        return finished

    def _finish_interrupted(self) -> list[str]:
        plans = {path.parent.name: read_record(path, _Plan) for path in sorted(self.path.glob("work/*/finish.json"))}
        for stage, plan in plans.items():
            if plan:
                self._complete(stage, plan["writes"], plan["mark"])
        return list(plans)

    @property
    def earlier(self) -> EarlierResults:
        """Results of all rounds that an unfinished redo set aside, if any."""
        return EarlierResults(self.run, Trash(self.run / "work" / ".trash"))

    def earlier_mark(self, stage: str) -> DoneMark[StageResult] | None:
        """Return the done mark that an unfinished redo set aside, or None."""
        return RunDir(self.earlier.files(stage)).mark(stage)

    def hashes(self, names: Iterable[str]) -> dict[str, str]:
        """Return the SHA-256 of each of the run's files and folders, without missing ones."""
        return {name: sha256(self.artifact(name)) for name in names if self.artifact(name).exists()}

    def event(self, kind: str, **details: Any) -> None:
        """Append an event to events.jsonl."""
        append_line(self.path / "events.jsonl", {"time": now(), "kind": kind, **details})

    def _place(self, stage: str) -> tuple[Path, str]:
        """Return the folder of a stage's round, and the stage's name in it."""
        number, plain = split(stage)
        if number > 1:
            return self.run / prefix(number), plain
        return (self.run if plain == SFT else self.path), plain

    def _sums(self, stage: str, writes: Sequence[str]) -> dict[str, Any]:
        """Return the keys of a done mark that record its outputs, still in the work folder, and its log rows."""
        files = outputs.file_sums(self.work(stage), writes)
        rows = {log.path.name: found for log in self.logs if (found := log.sums().get(stage))}
        return {
            "outputs": {name: found.model_dump() for name, found in files.items()},
            "logs": {name: found.model_dump() for name, found in rows.items()},
        }

    def _complete(self, stage: str, writes: Sequence[str], mark: dict[str, Any]) -> None:
        work = self.work_path(stage)
        for name in writes:
            if (work / name).exists():  # otherwise it was moved before the process was killed
                self._trash.put(self.artifact(name))  # a folder cannot be renamed over another
                self.artifact(name).parent.mkdir(parents=True, exist_ok=True)
                fault_points.point(f"{name}: before it moves")
                os.replace(work / name, self.artifact(name))
                fault_points.point(f"{name}: moved")
                sync_folder(self.artifact(name).parent)
        write_json_atomic(self.path / "done" / f"{stage}.json", mark)
        self._trash.put(work)
        fault_points.point(f"{stage}: work put away")
        self._trash.empty()


def check_new_name(run: Path) -> None:
    """Raise `UserError` if the run is new and its folder could not be copied to macOS or Windows beside the others."""
    try:
        names = set(os.listdir(run.parent))
    except OSError:
        names = set()
    if run.name in names:
        return
    if _RESERVED.fullmatch(run.name):
        raise UserError(f"name: {run.name}: not a valid folder name on Windows. Choose another name")
    if twins := [name for name in names if name.casefold() == run.name.casefold()]:
        raise UserError(
            f"name: {run.name} differs from the existing run {twins[0]} in upper and lower case only; on macOS and "
            f"Windows they would be one folder. Write {twins[0]}, or choose another name"
        )


def check_adapter(folder: Path) -> None:
    """Raise `StaleRun` if the folder is an adapter of a run and was damaged after its stage finished."""
    folder = folder.absolute()
    adapters = next((parent for parent in folder.parents[:2] if parent.name == "adapters"), None)
    if adapters is not None:  # in `adapters/policy-last/` are those of earlier steps
        run, number = adapters.parent, split(f"{adapters.parent.name}/")[0]
        RunDir(run.parent if number > 1 else run, number).check_outputs(folder.relative_to(run).as_posix())


def _is_in(file: str, names: Iterable[str]) -> bool:
    return any(file == name or file.startswith(f"{name}/") for name in names)
