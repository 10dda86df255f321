"""State of a run and its current stage, from its process, its events and the exit code of its last command."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.errors import ExitCode
from lowrank_rlhf.run.results import DoneMark, StageResult

State = Literal["running", "starting", "waiting", "finished", "stopped", "failed", "killed", "new"]
Events = Sequence[dict[str, Any]]

_BY_CODE: dict[int, State] = {int(ExitCode.WAITING): "waiting", int(ExitCode.STOPPED): "stopped", 0: "stopped"}
_BY_ERROR: dict[str, State] = {"WaitingForPeople": "waiting", "Stopped": "stopped", "KeyboardInterrupt": "stopped"}
_REMARKS = ("warning", "skipped", "rolled back", "halved")  # events that neither start nor end a stage
_CLOCK_SLACK_SECONDS = 2.0  # times are noted to the second, and a command's last event may follow its last line


def state_of(path: Path, alive: bool, complete: bool, events: Events, job: Mapping[str, Any]) -> State:
    """Return the state of a run from its process, stages, events and the last command that a page started on it."""
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


def is_superseded(path: Path, events: Events) -> bool:
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


def current_stage(stages: Sequence[str], marks: dict[str, DoneMark[StageResult]], events: Events) -> str | None:
    """Return the unfinished stage that was started last, else the first unfinished one."""
    started = [event["stage"] for event in events if event.get("kind") == "started"]
    if started and started[-1] in stages and started[-1] not in marks:
        return str(started[-1])
    return next((stage for stage in stages if stage not in marks), None)
