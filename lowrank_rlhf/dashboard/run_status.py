"""Where every run stands, read from its folder alone: a run that was started in a terminal looks like any other."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.tail import Tails, last_lines
from lowrank_rlhf.data.run_data import RunData, read_commits
from lowrank_rlhf.errors import ExitCode, UserError
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.planner.compute_cost import seconds_to_go
from lowrank_rlhf.planner.pace import stage_costs
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.sources.model_shape import find_shape
from lowrank_rlhf.stages import STAGES

Kind = Literal["running", "starting", "waiting", "finished", "stopped", "failed", "killed", "new"]

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# `ppo       3/14 steps   21%  score -0.0596  kl -0.0487  ETA 2:01  2.1 GiB`, as `progress.Bar` writes it
_BAR = re.compile(r"(?P<stage>\w+) +(?P<count>\d+)/(?P<total>\d+) (?P<unit>.+?) +\d+%  (?P<details>.*)")
_ETA = re.compile(r"ETA (?:(\d+):)?(\d+):(\d\d)")
_LINES_SEARCHED = 60
_MESSAGE_LINES = 12

TAILS = Tails()


class Bar(NamedTuple):
    """How far the stage at work is: `3` of `14` `steps`; `details` are the figures beside it, for people."""

    stage: str
    at: int
    total: int
    unit: str
    details: str

    @property
    def seconds_left(self) -> float | None:
        """Of this stage, as the run itself tells it."""
        found = _ETA.search(self.details)
        return None if not found else int(found[1] or 0) * 3600 + int(found[2]) * 60 + int(found[3])


@dataclass(frozen=True)
class Run:
    """One run as it stands now."""

    name: str
    path: Path
    kind: Kind
    stages: Sequence[str]
    """Those that its config asks for, in order."""
    done: Sequence[str]
    stage: str | None
    """The one at work, or the one that it stopped in."""
    bar: Bar | None = None
    seconds_left: float | None = None
    message: str = ""
    """What it said when it stopped."""
    pid: int | None = None
    marks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The done-marks by stage."""
    algorithm: str = "PPO"
    """What makes the policy, in capitals, as its config says."""

    @property
    def busy(self) -> bool:
        """A process works on it."""
        return self.kind in ("running", "starting")

    @property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """Those of the finished stages."""
        return {name: mark.get("summary", {}) for name, mark in self.marks.items()}


def run_path(runs: Path, name: str) -> Path:
    """The run's folder, which need not exist. Raises `UserError` for a name that leads anywhere else."""
    path = runs / name
    if not RUN_NAME.fullmatch(name) or path.is_symlink():
        raise UserError(f"{name[:80]!r} is not a run's name")
    return path


def names(runs: Path) -> list[str]:
    """The runs in the folder, the one that changed last first."""
    try:
        folders = [path for path in runs.iterdir() if RUN_NAME.fullmatch(path.name) and not path.is_symlink()]
    except OSError:
        return []
    found = [path for path in folders if (path / "config.yaml").is_file() or (path / "logs" / "job.json").is_file()]
    return [path.name for path in sorted(found, key=_changed, reverse=True)]


def look(runs: Path, name: str) -> Run:
    """The run as it stands now. Raises `UserError` for a name that is none."""
    path = run_path(runs, name)
    config = _config(path)
    marks = _marks(RunDir(path))
    stages = [stage.name for stage in pipeline.stages_of(config)] if config else list(marks)
    done = [stage for stage in stages if stage in marks]
    events, _ = TAILS.look(path / "events.jsonl")
    process = jobs.working(path)
    kind = _kind(path, process is not None, len(done) == len(stages) > 0, events)
    busy = kind in ("running", "starting")
    stage = _stage(stages, done, events)
    bar = _bar(path, stage) if busy else None
    return Run(
        name=name,
        path=path,
        kind=kind,
        stages=stages,
        done=done,
        stage=None if kind == "finished" else stage,
        bar=bar,
        seconds_left=_seconds_left(config, path, marks, stage, bar, events) if busy and config else None,
        message="" if busy or kind == "finished" else _message(path),
        pid=process.pid if process else None,
        marks=marks,
        algorithm=config.align.algorithm.upper() if config else "PPO",
    )


def training(runs: Path) -> str | None:
    """The name of a run that a process works on now."""
    return next((name for name in names(runs) if jobs.working(runs / name)), None)


def _marks(run_dir: RunDir) -> dict[str, dict[str, Any]]:
    """Of the stages that are done; one that is damaged is not: `status` says what is wrong with it."""
    found = {}
    for stage in STAGES:
        with suppress(UserError):
            if mark := run_dir.done(stage.name):
                found[stage.name] = mark
    return found


def _changed(path: Path) -> float:
    times = [file.stat().st_mtime for file in (path / "events.jsonl", path / "logs" / "job.json") if file.exists()]
    return max(times, default=path.stat().st_mtime)


def _config(path: Path) -> Config | None:
    """The run's settings; None where there are none yet, or another version's."""
    file = path / "config.yaml"
    try:
        return _loaded(file, file.stat().st_mtime_ns)
    except (OSError, UserError):
        return None


@lru_cache(maxsize=64)
def _loaded(file: Path, _: int) -> Config:
    return load_config(file)


def _kind(path: Path, alive: bool, complete: bool, events: Sequence[dict[str, Any]]) -> Kind:
    job = jobs.job(path) or {}
    if alive:
        return "running" if jobs.holder(path) else "starting"
    if complete:
        return "finished"
    last = events[-1] if events else {}
    code = job.get("exit_code")
    # What ended before the lock was taken, such as a refused config, left no event: the exit code is later than it.
    if code is not None and str(job.get("since", "")) >= str(last.get("time", "")):
        return _by_code(int(code))
    if last.get("kind") == "ended early":
        error = str(last.get("error"))
        return {"WaitingForPeople": "waiting", "Stopped": "stopped", "KeyboardInterrupt": "stopped"}.get(
            error, "failed"
        )  # type: ignore[return-value]
    if last.get("kind") == "started":
        return "killed"
    return _by_code(int(code)) if code is not None else "stopped" if events else "new"


def _by_code(code: int) -> Kind:
    if code < 0:
        return "killed"
    return {int(ExitCode.WAITING): "waiting", int(ExitCode.STOPPED): "stopped", 0: "stopped"}.get(code, "failed")  # type: ignore[return-value]


def _stage(stages: Sequence[str], done: Sequence[str], events: Sequence[dict[str, Any]]) -> str | None:
    """The stage that was begun last and is not done, or else the next one."""
    begun = [event["stage"] for event in events if event.get("kind") == "started"]
    if begun and begun[-1] in stages and begun[-1] not in done:
        return str(begun[-1])
    return next((stage for stage in stages if stage not in done), None)


def _bar(path: Path, stage: str | None) -> Bar | None:
    """From the end of the log; None for a run of a terminal, whose log is the terminal."""
    log = jobs.log_path(path)
    if log is None or jobs.holder(path) is None or (jobs.job(path) or {}).get("exit_code") is not None:
        return None
    for line in reversed(last_lines(log, _LINES_SEARCHED)):
        if found := _BAR.fullmatch(line.strip()):
            of = found["stage"]
            if of != stage:
                return None
            return Bar(of, int(found["count"]), int(found["total"]), found["unit"], found["details"])
    return None


def _seconds_left(
    config: Config,
    path: Path,
    marks: dict[str, dict[str, Any]],
    stage: str | None,
    bar: Bar | None,
    events: Sequence[dict[str, Any]],
) -> float | None:
    """This stage's by its own word where it has one, the others' from the pace of those that are done."""
    done = {name: float(mark.get("seconds", 0)) for name, mark in marks.items()}
    amounts = _amounts(path, (path / "config.yaml").stat().st_mtime_ns, tuple(sorted(done)))
    if not amounts or stage is None:
        return bar.seconds_left if bar else None
    wanted = {entry.name: amounts[entry.name] for entry in pipeline.stages_of(config)}
    own = bar.seconds_left if bar else None
    if own is not None:
        return own + (seconds_to_go(done, {name: units for name, units in wanted.items() if name != stage}) or 0)
    whole = seconds_to_go(done, wanted)
    begun = next((event["time"] for event in reversed(events) if event.get("kind") == "started"), None)
    spent = (datetime.now(UTC) - datetime.fromisoformat(begun)).total_seconds() if begun else 0.0
    return None if whole is None else max(0.0, whole - spent)


@lru_cache(maxsize=64)
def _amounts(path: Path, _: int, done: tuple[str, ...]) -> dict[str, float] | None:  # noqa: ARG001 - the cache's key
    """The work of every stage; None where the model or the data is not here."""
    try:
        config = load_config(path / "config.yaml")
        shape = find_shape(config.model)
        return stage_costs(config, RunDir(path), shape, RunData(config, read_commits(RunDir(path)))) if shape else None
    except UserError:
        return None


def _message(path: Path) -> str:
    """The end of the log, from the last line of progress on."""
    log = jobs.log_path(path)
    lines = last_lines(log, _MESSAGE_LINES) if log else []
    for index in range(len(lines) - 1, -1, -1):
        if _BAR.fullmatch(lines[index].strip()) or re.match(r"\[\d/\d\] ", lines[index]):
            lines = lines[index + 1 :]
            break
    return "\n".join(lines).strip()


def memory_bytes(run: Run) -> int | None:
    """Resident memory of the process that works on the run."""
    process = jobs.working(run.path)
    return int(process.memory_info().rss) if process else None
