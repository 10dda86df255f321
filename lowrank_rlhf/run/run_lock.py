"""Lock of a run, the process that has it, and versions of the software.

A process is known by host, boot, PID namespace and number: in two containers or after a restart other processes have
the same number. The inode of the lock makes the record of a copied run folder a stranger's.
"""

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from lowrank_rlhf.errors import Fault, RunLocked, UserError
from lowrank_rlhf.run.files import now, read_json, write_json_atomic

LOCK = "run.lock"
_PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes")
_PATIENCE_SECONDS = 0.3
"""Longer than `is_locked` keeps the lock to look at it."""


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Lock the run inside the block. Raises `RunLocked` if another process has it; a dead process keeps no lock."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock, record = FileLock(run / LOCK), _record(run)
        lock.acquire(timeout=_PATIENCE_SECONDS, poll_interval=0.02)
    except Timeout:
        raise RunLocked(_in_use(run)) from None
    except OSError as error:
        raise UserError(f"{run}: cannot create the run folder, or lock it: {error.strerror}") from None
    try:
        write_json_atomic(record, {"schema": 1, "pid": os.getpid(), "since": now(), **identity(run / LOCK)})
        yield
    finally:
        with suppress(OSError):  # read-only disk: the file remains, and has no meaning without the lock
            record.unlink(missing_ok=True)
        lock.release()


def lock_record(run: Path) -> dict[str, Any]:
    """Return the record of the process that has the lock, or had it last: `pid`, `since` and its `identity`."""
    return read_json(_record(run)) or {}


def is_locked(run: Path) -> bool | None:
    """Return True if a process has the run's lock, here or on another host; None if the lock cannot be tried."""
    if not (run / LOCK).is_file():
        return False
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # another user's run, or a read-only disk
        return None
    lock.release()
    return False


def identity(path: Path) -> dict[str, Any]:
    """Return host, boot and PID namespace of this process, and the inode of a file or folder of its run."""
    return {"host": platform.node(), "boot": _boot(), "pid_namespace": _pid_namespace(), "inode": path.stat().st_ino}


def is_from_here(record: Mapping[str, Any], path: Path) -> bool:
    """Return True if all parts of the record's identity are known and equal to this process's and to the path's."""
    try:
        own = identity(path)
    except OSError:
        return False
    return all(key in record and record[key] == value for key, value in own.items())


def process_name(record: Mapping[str, Any]) -> Fault:
    """Return `process 12`, with the host if it is another one or in another container."""
    own = {"host": platform.node(), "pid_namespace": _pid_namespace()}
    elsewhere = any(record.get(key, value) != value for key, value in own.items())
    name = Fault("another_process", "another process")
    if "pid" in record:
        name = Fault("process", "process {number}", number=record["pid"])
    if not elsewhere or "host" not in record:
        return name
    return Fault("process_on_host", "{process} on host {host}", process=name, host=record["host"])


def _record(run: Path) -> Path:
    return run / f"{LOCK}.json"


def _in_use(run: Path) -> Fault:
    record = lock_record(run)
    since = f" since {record['since']}" if "since" in record else ""
    text = "{run}: in use by {process}{since}. Wait until it ends, or stop it: it saves its work on SIGTERM."
    return Fault("in_use", text, run=str(run), process=process_name(record), since=since)


def _boot() -> str:
    """Return the id of the system's last start; outside Linux its time, to a minute."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return str(round(psutil.boot_time() / 60))


def _pid_namespace() -> int | None:
    """Return the inode of this process's PID namespace; None where there are none."""
    with suppress(OSError):
        return Path("/proc/self/ns/pid").stat().st_ino
    return None


def software() -> dict[str, Any]:
    """Return the versions of Python and the libraries, and the machine."""
    return {
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
