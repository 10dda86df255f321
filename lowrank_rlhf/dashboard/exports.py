"""What a run learnt, made ready to take home by the command `export`, and as one zip."""

import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.tail import last_lines
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run.files import file_names

WHATS = ("adapters", "merged", "reward")
MOST_BYTES = 64 * 2**30
_CHUNK = 2**20
State = Literal["none", "working", "ready", "failed"]


def folder(run: Path, what: str) -> Path:
    """Where that export of the run stands. Raises `UserError` for another word."""
    if what not in WHATS:
        raise UserError(f"{what[:40]!r} cannot be exported; {', '.join(WHATS)} can")
    return run / "exports" / what


def start(run: Path, what: str) -> list[str]:
    """Start the export; one that is there is made again. Returns the command. Raises `UserError` while one works."""
    target, job = folder(run, what), _job(run, what)
    if jobs.working(job):
        raise UserError(f"{run.name}: this export is being made already")
    if target.is_dir() and not target.is_symlink():
        old = target.with_name(f".{what}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)  # half an export is never under its name
        shutil.rmtree(old)
    command = [sys.executable, "-m", "lowrank_rlhf", "export", run.name, str(target), "--what", what]
    command += ["--runs", str(run.parent)]
    jobs.start(job, command)
    return command


def state(run: Path, what: str) -> tuple[State, str]:
    """Whether the export is there, and the end of what the command said."""
    job = _job(run, what)
    log = jobs.log_path(job)
    said = "\n".join(last_lines(log, 12)) if log else ""
    if jobs.working(job):
        return "working", said
    if folder(run, what).is_dir():
        return "ready", said
    return ("failed" if said else "none"), said


def size(run: Path, what: str) -> int:
    """Bytes of an export that is ready."""
    return sum(path.stat().st_size for path in _files(folder(run, what)))


def zipped(run: Path, what: str) -> Iterator[bytes]:
    """The export as a zip, piece by piece; weights don't get smaller by packing, so nothing is packed.

    Raises `UserError` where it is not there, or too large.
    """
    target = folder(run, what)
    if not target.is_dir() or target.is_symlink():
        raise UserError(f"{run.name}: this export has not been made")
    if size(run, what) > MOST_BYTES:
        raise UserError(f"{target} is too large for a download; copy the folder")
    return _zip(target, f"{run.name}-{what}")


def _zip(target: Path, name: str) -> Iterator[bytes]:
    into = _Sink()
    with zipfile.ZipFile(into, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:  # type: ignore[call-overload]
        for path in _files(target):
            about = zipfile.ZipInfo.from_file(path, f"{name}/{path.relative_to(target).as_posix()}")
            with path.open("rb") as source, archive.open(about, "w", force_zip64=True) as entry:
                while piece := source.read(_CHUNK):
                    entry.write(piece)
                    yield into.take()
    yield into.take()


class _Sink:
    """What has been written and not been sent yet; it cannot go back."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> int:
        self._pieces.append(bytes(piece))
        return len(piece)

    def flush(self) -> None:
        """Nothing waits anywhere else."""

    def take(self) -> bytes:
        """All of it, once."""
        taken, self._pieces = b"".join(self._pieces), []
        return taken


def _files(target: Path) -> list[Path]:
    """Only the export's own: no link, which could lead out of it."""
    return [path for name in file_names(target) if not (path := target / name).is_symlink()]


def _job(run: Path, what: str) -> Path:
    return run / "exports" / f".{what}"
