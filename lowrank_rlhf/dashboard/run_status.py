"""Status of a run, read from its folder alone, so that a run started in a terminal looks like any other."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.tail import JsonlTails, last_lines
from lowrank_rlhf.errors import ExitCode, UserError
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress_file import StageProgress, read_progress
from lowrank_rlhf.run.results import DoneMark, Results, StageResult
from lowrank_rlhf.run.results.parts import Interval
from lowrank_rlhf.run.results.rounds import SFT, split, stages_in
from lowrank_rlhf.run.run_lock import lock_record

State = Literal["running", "starting", "waiting", "finished", "stopped", "failed", "killed", "new"]
Events = Sequence[dict[str, Any]]
Signature = tuple[tuple[int, int, int] | None, ...]

_BY_CODE: dict[int, State] = {int(ExitCode.WAITING): "waiting", int(ExitCode.STOPPED): "stopped", 0: "stopped"}
_BY_ERROR: dict[str, State] = {"WaitingForPeople": "waiting", "Stopped": "stopped", "KeyboardInterrupt": "stopped"}
_REMARKS = ("warning", "skipped", "rolled back", "halved")  # events that neither start nor end a stage
_METRICS = {"sft": ("loss", "loss"), "reward": ("accuracy", "training_accuracy"), "ppo": ("objective/scores", "score")}
"""Headline metric of each stage, and the key of its text."""
_LOG_LINES = 12
_CLOCK_SLACK_SECONDS = 2.0  # times are noted to the second, and a command's last event may follow its last line


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


_SIGNED = ("", "config.yaml", "done", "events.jsonl", "metrics.jsonl", "logs/job.json", "run.lock.json")
"""Files and folders of a run of which one changes whenever its status does, unless a process works on it."""


class StatusReader:
    """Reader of run statuses. A run on which no process works is read again only after a change."""

    def __init__(self, tails: JsonlTails) -> None:
        self._tails = tails
        self._load = lru_cache(maxsize=64)(_load_config)
        self._idle: dict[Path, tuple[Signature, RunStatus]] = {}

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

    def _read(self, path: Path) -> RunStatus:
        config = self._config(path)
        marks = _marks(RunDir(path))
        stages = [stage.name for stage in pipeline.stages_of(config)] if config else list(marks)
        events, _ = self._tails.read(path / "events.jsonl")
        worker = jobs.working(path)
        busy = worker is not None
        complete = bool(stages) and all(stage in marks for stage in stages)
        job = jobs.job(path) or {}
        state = _state(path, busy, complete, events, job)
        current = not busy and not _is_superseded(path, events)
        code = job.get("exit_code") if current else None
        stage = None if state == "finished" else _current_stage(stages, marks, events)
        return RunStatus(
            name=path.name,
            path=path,
            state=state,
            stages=stages,
            stage=stage,
            marks=marks,
            progress=_progress(path, stage) if busy else None,
            figure=self._figure(RunDir(path).rounds[-1], state, marks),
            log_end=_log_end(path) if current and (state != "finished" or code) else "",
            error=jobs.error(path) if code and code != ExitCode.STOPPED else (),
            exit_code=code,
            pid=worker.process.pid if worker and worker.process else None,
            algorithm=config.align.algorithm if config else "ppo",
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


def _state(path: Path, alive: bool, complete: bool, events: Events, job: Mapping[str, Any]) -> State:
    if alive:
        return "running" if jobs.holder(path) else "starting"
    if complete:
        return "finished"
    last = next((event for event in reversed(events) if event.get("kind") not in _REMARKS), {})
    code = job.get("exit_code")
    # A command that ended before it took the lock leaves no event: its exit code is newer than the last one.
    if code is not None and str(job.get("since", "")) >= str(last.get("time", "")):
        return _by_code(int(code))
    if last.get("kind") == "ended early":
        return _BY_ERROR.get(str(last.get("error")), "failed")
    if last.get("kind") == "started":
        return "killed"
    if code is not None:
        return _by_code(int(code))
    return "stopped" if events else "new"


def _is_superseded(path: Path, events: Events) -> bool:
    """Return True if another command worked on the run after the last one that a page started."""
    ended = jobs.ended_at(path)
    times = []
    with suppress(OSError):
        times.append((path / "config.yaml").stat().st_mtime)  # each command writes it
    with suppress(IndexError, KeyError, ValueError):
        times.append(datetime.fromisoformat(str(events[-1]["time"])).timestamp())
    return ended is not None and max(times, default=0.0) > ended + _CLOCK_SLACK_SECONDS


def _by_code(code: int) -> State:
    return "killed" if code < 0 else _BY_CODE.get(code, "failed")


def _current_stage(stages: Sequence[str], marks: dict[str, DoneMark[StageResult]], events: Events) -> str | None:
    """Return the unfinished stage that was started last, else the first unfinished one."""
    started = [event["stage"] for event in events if event.get("kind") == "started"]
    if started and started[-1] in stages and started[-1] not in marks:
        return str(started[-1])
    return next((stage for stage in stages if stage not in marks), None)


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
