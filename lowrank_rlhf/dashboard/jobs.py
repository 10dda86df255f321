"""Training as a process of its own: the same command that a person would type, started, found again and stopped."""

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.files import now, read_json, write_json_atomic

PASSWORD_VARIABLE = "LOWRANK_RLHF_PASSWORD"  # noqa: S105 - its name, not its value
_LOGS_KEPT = 10
_SLACK_SECONDS = 2.0  # clocks that tell when a process began and when it wrote so


def run_command(config: str, runs: Path, *more: str) -> list[str]:
    """The command of a run, as a list for a process, never for a shell."""
    return [sys.executable, "-m", "lowrank_rlhf", "run", config, *more, "--runs", str(runs)]


def as_typed(command: Sequence[str]) -> str:
    """The command as a person would type it, with the environment's own Python."""
    return shlex.join(["python", *command[1:]])


def environment() -> dict[str, str]:
    """What a command started here sees: everything but the page's password; output at once, and not too narrow."""
    own = {name: value for name, value in os.environ.items() if name != PASSWORD_VARIABLE}
    return own | {"COLUMNS": "110", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def start(run: Path, command: Sequence[str]) -> None:
    """Start a command on a run's folder; its output goes to a new log there. Raises `UserError` where one works."""
    if process := working(run):
        raise UserError(f"{run.name}: process {process.pid} works on this run already")
    folder = run / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.log"
    with log.open("xb") as output:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # it outlives the page
            env=environment(),
        )
    job = {
        "schema": 1,
        "pid": child.pid,
        "command": list(command),
        "log": log.name,
        "since": now(),
        "exit_code": None,
    }
    write_json_atomic(_path(run), job)
    threading.Thread(target=_reap, args=(child, run, job), daemon=True).start()
    for old in sorted(folder.glob("*.log"))[:-_LOGS_KEPT]:
        old.unlink(missing_ok=True)


def _reap(child: subprocess.Popen, run: Path, job: dict[str, Any]) -> None:
    """Note how it ended, unless another one was started since."""
    code = child.wait()
    if (read_json(_path(run)) or {}).get("pid") == child.pid:
        write_json_atomic(_path(run), job | {"exit_code": code})


def stop(run: Path) -> bool:
    """Ask whoever works on the run to save and end; False where nobody does. Raises `UserError` if it is another's."""
    process = working(run)
    if process is None:
        return False
    try:
        process.send_signal(signal.SIGTERM)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        raise UserError(f"{run.name}: process {process.pid} is another user's; only they can stop it") from None
    return True


def job(run: Path) -> dict[str, Any] | None:
    """The command that the page started last on this run, if it did: pid, command, log, since, exit_code."""
    return read_json(_path(run))


def log_path(run: Path) -> Path | None:
    """The log of that command."""
    found = job(run)
    name = found.get("log") if found else None
    return run / "logs" / Path(str(name)).name if name else None


def holder(run: Path) -> psutil.Process | None:
    """The live process that holds the run's lock, wherever it was started."""
    return _alive(read_json(run / "run.lock.json"))


def working(run: Path) -> psutil.Process | None:
    """The live process that works on the run: its lock's holder, or a command of the page that has not got so far."""
    return holder(run) or _alive(job(run))


def _alive(written: dict[str, Any] | None) -> psutil.Process | None:
    """The process that wrote so, if it still lives: ours, and no later one that got its number."""
    try:
        process = psutil.Process(int((written or {})["pid"]))
        began = datetime.fromisoformat(str((written or {})["since"])).timestamp()
        with process.oneshot():
            started = " ".join(process.cmdline()).replace("lowrank-rlhf", "lowrank_rlhf")  # by either of its names
            ours = "lowrank_rlhf" in started and process.status() != psutil.STATUS_ZOMBIE
            same = process.create_time() <= began + _SLACK_SECONDS
    except (KeyError, TypeError, ValueError, psutil.Error):
        return None
    return process if ours and same else None


def _path(run: Path) -> Path:
    return run / "logs" / "job.json"
