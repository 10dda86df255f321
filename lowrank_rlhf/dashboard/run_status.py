"""Status of a run, read from its folder alone, so that a run started in a terminal looks like any other."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.run_state import State, current_stage, is_superseded, state_of
from lowrank_rlhf.dashboard.tail import JsonlTails, last_lines
from lowrank_rlhf.errors import ExitCode, UserError
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.reports.alarms import Alarm, find_alarms
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import file_state
from lowrank_rlhf.run.progress_file import StageProgress, read_progress
from lowrank_rlhf.run.results import DoneMark, Results, StageResult
from lowrank_rlhf.run.results.parts import Interval
from lowrank_rlhf.run.results.rounds import SFT, split, stages_in
from lowrank_rlhf.run.run_lock import lock_record

Signature = tuple[tuple[int, int, int] | None, ...]

_METRICS = {"sft": ("loss", "loss"), "reward": ("accuracy", "training_accuracy"), "ppo": ("objective/scores", "score")}
"""Headline metric of each stage, and the key of its text."""
_LOG_LINES = 12


class KeyFigure(NamedTuple):
    """Headline figure of a run; `key` is `loss`, `training_accuracy`, `held_out_accuracy`, `score` or `win_rate`."""

    key: str
    value: float
    interval: Interval | None = None
    """95 % interval."""

    @property
    def is_share(self) -> bool:
        """Return True if the value is a share of 1."""
        return self.key in ("training_accuracy", "held_out_accuracy", "win_rate")


@dataclass(frozen=True)
class RunStatus:
    """Status of one run at one moment."""

    name: str
    path: Path
    state: State
    stages: Sequence[str]
    """Stages of the config, in order."""
    stage: str | None
    """Running stage, or the one that the run stopped in."""
    marks: dict[str, DoneMark[StageResult]] = field(default_factory=dict)
    """Done marks by stage."""
    progress: StageProgress | None = None
    """Progress of the running stage."""
    figure: KeyFigure | None = None
    log_end: str = ""
    """Last lines of the last command's log if it or the run ended early and a page started it."""
    error: tuple[str, ...] = ()
    """Parts of the error with which that command ended; none after a stop."""
    exit_code: int | None = None
    """Exit code of the last command on the run, if a page started it."""
    pid: int | None = None
    algorithm: str = "ppo"
    """`align.algorithm` of the config."""
    people_rank: bool = False
    """True if people rank in a stage that is not done; no estimate has their time."""
    archived: bool = False
    """True for a run that a person took out of the list."""

    @property
    def round_dir(self) -> RunDir:
        """Folder of the newest round that was started."""
        return RunDir(self.path).rounds[-1]

    @property
    def busy(self) -> bool:
        """Return True if a process works on the run."""
        return self.state in ("running", "starting")

    @property
    def done(self) -> list[str]:
        """Return the finished stages of the config."""
        return [stage for stage in self.stages if stage in self.marks]

    @property
    def results(self) -> Results:
        """Return the results of the finished stages, of the newest round that was started."""
        return _results(self.marks, self.round_dir.number)

    @property
    def seconds_left(self) -> float | None:
        """Return the run's own estimate: for the whole run if it has one, else for the running stage."""
        if self.progress is None:
            return None
        whole = self.progress.run_seconds_left
        return self.progress.seconds_left if whole is None else whole

    def memory_bytes(self) -> int | None:
        """Return the resident memory of the process that works on the run, or None."""
        worker = jobs.working(self.path)
        return int(worker.process.memory_info().rss) if worker and worker.process else None

    def damage(self) -> list[str]:
        """Return a message for each damaged done mark, output and log. The first call reads all outputs."""
        return RunDir(self.path).damage()


ARCHIVED = "archived"
"""Empty file in the folder of a run that the list leaves out."""


def is_archived(run: Path) -> bool:
    """Return True for a run that a person took out of the list."""
    return (run / ARCHIVED).exists()


_SIGNED = ("", "config.yaml", "done", "events.jsonl", "metrics.jsonl", "logs/job.json", "run.lock.json")
"""Files and folders of a run of which one changes whenever its status does, unless a process works on it."""


class StatusReader:
    """Reader of run statuses. A run on which no process works is read again only after a change."""

    def __init__(self, tails: JsonlTails) -> None:
        self._tails = tails
        self._load = lru_cache(maxsize=64)(_load_config)
        self._idle: dict[Path, tuple[Signature, RunStatus]] = {}
        self._alarms: dict[Path, tuple[Any, Sequence[Alarm]]] = {}

    def kept(self, path: Path) -> RunStatus | None:
        """Return the status of a run that was read before and has not changed; None for any other."""
        signature, status = self._idle.get(path, (None, None))
        return status if status and signature == _signature(path) else None

    def read(self, path: Path) -> RunStatus:
        """Return the current status of the run in a folder."""
        if (kept := self.kept(path)) is not None:
            return kept
        signature = _signature(path)
        status = self._read(path)
        if status.busy:
            self._idle.pop(path, None)
        else:
            self._idle[path] = signature, status
        return status

    def alarms(self, run: RunStatus, look: bool = True) -> Sequence[Alarm]:
        """Return the alarms of a run's newest round; those found last if `look` is false.

        They are looked for again when the metrics or the finished stages have changed.
        """
        round_dir = run.round_dir
        try:
            metrics = file_state(round_dir.metrics.path.stat())
        except OSError:
            metrics = ()
        key = round_dir.number, metrics, [(stage, mark.finished_at) for stage, mark in run.marks.items()]
        known, alarms = self._alarms.get(run.path, (None, ()))
        if look and known != key:
            rows, _ = self._tails.read(round_dir.metrics.path)
            alarms = find_alarms(rows, run.results, run.algorithm)
            self._alarms[run.path] = key, alarms
        return alarms

    def _read(self, path: Path) -> RunStatus:
        config = self._config(path)
        marks = _marks(RunDir(path))
        stages = [stage.name for stage in pipeline.stages_of(config)] if config else list(marks)
        events, _ = self._tails.read(path / "events.jsonl")
        worker = jobs.working(path)
        busy = worker is not None
        complete = bool(stages) and all(stage in marks for stage in stages)
        job = jobs.job(path) or {}
        state = state_of(path, busy, complete, events, job)
        round_dir, algorithm = RunDir(path).rounds[-1], config.align.algorithm if config else "ppo"
        current = not busy and not is_superseded(path, events)
        code = job.get("exit_code") if current else None
        stage = None if state == "finished" else current_stage(stages, marks, events)
        return RunStatus(
            name=path.name,
            path=path,
            state=state,
            stages=stages,
            stage=stage,
            marks=marks,
            progress=_progress(path, stage) if busy else None,
            figure=self._figure(round_dir, state, marks),
            log_end=_log_end(path) if current and (state != "finished" or code) else "",
            error=jobs.error(path) if code and code != ExitCode.STOPPED else (),
            exit_code=code,
            pid=worker.process.pid if worker and worker.process else None,
            algorithm=algorithm,
            people_rank=config is not None
            and config.rank.source == "human"
            and any(split(name)[1] == "rank" and name not in marks for name in stages),
            archived=is_archived(path),
        )

    def _config(self, path: Path) -> Config | None:
        """Return the run's config; None if it has none yet or another version's."""
        file = path / "config.yaml"
        try:
            return self._load(file, file.stat().st_mtime_ns)
        except (OSError, UserError):
            return None

    def _figure(self, run_dir: RunDir, state: State, marks: Mapping[str, DoneMark[StageResult]]) -> KeyFigure | None:
        """Return the win rate of a finished run, else the latest figure of the stage trained last."""
        results = _results(marks, run_dir.number)
        evaluated = results.evaluate if state == "finished" else None
        if evaluated and evaluated.win_rate is not None:
            return KeyFigure("win_rate", evaluated.win_rate, evaluated.win_rate_interval)
        rows, _ = self._tails.read(run_dir.metrics.path)
        for row in reversed(rows):
            metric, key = _METRICS.get(str(row.get("stage")), ("", ""))
            tested = results.reward if key == "training_accuracy" else None
            if tested and tested.accuracy is not None:
                return KeyFigure("held_out_accuracy", tested.accuracy, tested.accuracy_interval)
            if isinstance(value := row.get(metric), int | float):
                return KeyFigure(key, float(value))
        return None


def _signature(path: Path) -> Signature:
    """Return inode, size and time of change of the files in `_SIGNED`; None for a missing one."""
    found: list[tuple[int, int, int] | None] = []
    for name in _SIGNED:
        try:
            status = os.stat(path / name)
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


def _load_config(file: Path, _modified_at: int) -> Config:
    return load_config(file)


def _marks(run_dir: RunDir) -> dict[str, DoneMark[StageResult]]:
    """Return the readable done marks. A damaged one counts as missing; `RunStatus.damage` reports the damage."""
    marks = {}
    for stage in stages_in(run_dir.run):
        with suppress(UserError):
            if mark := run_dir.mark(stage):
                marks[stage] = mark
    return marks


def _results(marks: Mapping[str, DoneMark[StageResult]], number: int) -> Results:
    """Return the results of a round, and of stage sft, which all rounds share."""
    own = {plain: mark.result for stage, mark in marks.items() for each, plain in [split(stage)]
           if each == number or plain == SFT}  # fmt: skip
    return Results.model_validate(own)


def _progress(path: Path, stage: str | None) -> StageProgress | None:
    """Return the stage's progress if the current process wrote it, not an earlier one."""
    try:
        progress = read_progress(path)
        since = datetime.fromisoformat(str(lock_record(path)["since"]))
        current = progress is not None and datetime.fromisoformat(progress.updated_at) >= since
    except (KeyError, TypeError, ValueError, ValidationError, UserError):
        return None
    return progress if current and progress and progress.stage == stage else None


def _log_end(path: Path) -> str:
    log = jobs.log_path(path)
    return "\n".join(last_lines(log, _LOG_LINES)).strip() if log else ""
