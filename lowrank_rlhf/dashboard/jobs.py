"""Background commands that outlive the page: start, find and stop them."""

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from lowrank_rlhf.dashboard.access.password import PASSWORD_VARIABLE
from lowrank_rlhf.errors import ERROR_FILE, Fault, UserError, recorded_parts
from lowrank_rlhf.run.files import now, read_json, write_json_atomic
from lowrank_rlhf.run.run_lock import LOCK, identity, is_from_here, is_locked, lock_record, process_name

changing = threading.RLock()
"""Held while a command is started or a run deleted, so that neither happens in the middle of the other."""
_LOGS_KEPT = 10
_ERROR = "error.json"
_CLOCK_SLACK_SECONDS = 2.0  # between the start time of a process by the kernel and by its own record


class Worker(NamedTuple):
    """Process that works on a run."""

    process: psutil.Process | None
    """None if it is on another host or in another container, or wrote no record of itself."""
    name: Fault
    """Name for messages, such as `process 12 on host a`."""


def run_command(config: str, runs: Path, *more: str) -> list[str]:
    """Return the command of a run, as a list for a process, never for a shell."""
    return [sys.executable, "-m", "lowrank_rlhf", "run", config, *more, "--runs", str(runs)]


def as_typed(command: Sequence[str]) -> str:
    """Return the command as a person would type it, with the environment's own Python."""
    return shlex.join(["python", *command[1:]])


def environment() -> dict[str, str]:
    """Return the environment of the commands: this one without the page's password, with unbuffered UTF-8 output."""
    inherited = {name: value for name, value in os.environ.items() if name != PASSWORD_VARIABLE}
    return inherited | {"COLUMNS": "110", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def start(run: Path, command: Sequence[str]) -> None:
    """Start a command on a run's folder, with a new log there.

    Raises `UserError` if a process works on the run, or if its folder is missing: a deleted run does not come back.
    """
    with changing:
        check_idle(run, run.name)
        _start(run, command)


def check_idle(run: Path, name: str) -> None:
    """Raise `UserError` if a process works on the run."""
    if worker := working(run):
        text = "{run}: {process} is already working on this run"
        raise UserError(Fault("already_working", text, run=name, process=worker.name))


def make_folders(run: Path, *names: str) -> Path:
    """Make nested folders in a run and return the last one. Raises `UserError` if the run is missing."""
    folder = run
    for name in names:
        folder /= name
        try:
            folder.mkdir(exist_ok=True)
        except FileNotFoundError:
            raise not_found(run) from None
    return folder


def not_found(run: Path) -> UserError:
    """Return the error for a missing run."""
    return UserError(Fault("run_not_found", "{run}: run not found. It may have been deleted", run=run.name))


def _start(run: Path, command: Sequence[str]) -> None:
    folder = make_folders(run, "logs")
    log = folder / f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.log"
    (folder / _ERROR).unlink(missing_ok=True)
    with log.open("xb") as output:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the command outlives the page
            env=environment() | {ERROR_FILE: str(folder / _ERROR)},
        )
    record = {
        "schema": 1,
        "pid": child.pid,
        "command": list(command),
        "log": log.name,
        "since": now(),
        "exit_code": None,
        **identity(folder),
    }
    write_json_atomic(_path(run), record)
    threading.Thread(target=_reap, args=(child, run, record), daemon=True).start()
    for old in sorted(folder.glob("*.log"))[:-_LOGS_KEPT]:
        old.unlink(missing_ok=True)


def _reap(child: subprocess.Popen, run: Path, record: dict[str, Any]) -> None:
    """Wait for the command and note its exit code, unless another one was started since."""
    code = child.wait()
    with changing:
        if (read_json(_path(run)) or {}).get("pid") == child.pid:
            write_json_atomic(_path(run), record | {"exit_code": code, "ended": now()})


def stop(run: Path) -> bool:
    """Send SIGTERM to the process that works on the run: it saves and ends. Returns False if there is none.

    Raises `UserError` if the process is another user's, on another host, in another container, or not known.
    """
    worker = working(run)
    if worker is None:
        return False
    if worker.process is None:
        text = "{run}: {process} cannot be stopped from this page. Stop it where it was started"
        raise UserError(Fault("stopped_elsewhere", text, run=run.name, process=worker.name))
    try:
        worker.process.send_signal(signal.SIGTERM)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        text = "{run}: cannot stop {process}: it is another user's"
        raise UserError(Fault("of_another_user", text, run=run.name, process=worker.name)) from None
    return True


def job(run: Path) -> dict[str, Any] | None:
    """Return the record of the last command started from a page, or None.

    Its keys are pid, command, log, since, exit_code, and ended if the page was there at the end.
    """
    return read_json(_path(run))


def error(run: Path) -> tuple[str, ...]:
    """Return the parts of the error with which that command ended; none if it wrote none."""
    return recorded_parts(read_json(run / "logs" / _ERROR) or {})


def ended_at(run: Path) -> float | None:
    """Return when that command ended, in seconds since 1970: as noted, else the time of its log's last line."""
    noted = (job(run) or {}).get("ended")
    with suppress(ValueError, OSError):
        if noted is not None:
            return datetime.fromisoformat(str(noted)).timestamp()
        if log := log_path(run):
            return log.stat().st_mtime
    return None


def log_path(run: Path) -> Path | None:
    """Return the path of that command's log."""
    record = job(run)
    name = record.get("log") if record else None
    return run / "logs" / Path(str(name)).name if name else None


def holder(run: Path) -> Worker | None:
    """Return the process that has the run's lock, wherever it was started, or None.

    The lock itself answers, not the record of its process: that of a killed process or of a copied folder remains.
    """
    locked = is_locked(run)
    if locked is False:
        return None
    record = lock_record(run)
    process = _alive(record, run / LOCK)
    return Worker(process, process_name(record)) if locked or process else None


def working(run: Path) -> Worker | None:
    """Return the process that works on the run: its lock's holder, or a command that is still starting."""
    if worker := holder(run):
        return worker
    process = _alive(job(run) or {}, run / "logs")
    return Worker(process, process_name({"pid": process.pid})) if process else None


def _alive(record: dict[str, Any], path: Path) -> psutil.Process | None:
    """Return the process of a record, by its identity and the inode of the path, if it is alive and of this program."""
    if not is_from_here(record, path):
        return None
    try:
        process = psutil.Process(int(record["pid"]))
        since = datetime.fromisoformat(str(record["since"])).timestamp()
        with process.oneshot():
            command = " ".join(process.cmdline()).replace("lowrank-rlhf", "lowrank_rlhf")  # module or script
            own_program = "lowrank_rlhf" in command and process.status() != psutil.STATUS_ZOMBIE
            same = process.create_time() <= since + _CLOCK_SLACK_SECONDS
    except (KeyError, TypeError, ValueError, psutil.Error):
        return None
    return process if own_program and same else None


def _path(run: Path) -> Path:
    return run / "logs" / "job.json"
