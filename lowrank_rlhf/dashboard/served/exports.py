"""A run's adapters and models, exported by the command `export` and downloaded as one zip."""

import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.tail import last_lines
from lowrank_rlhf.errors import Fault, UserError
from lowrank_rlhf.run.files import file_names

KINDS = ("adapters", "merged", "reward")
"""Kinds of export: the values of `export --what`."""
MAX_BYTES = 64 * 2**30
_CHUNK = 2**20
_LOG_LINES = 12
ExportState = Literal["none", "working", "ready", "failed"]


def folder(run: Path, kind: str) -> Path:
    """Return the folder of an export. Raises `UserError` for an unknown one."""
    if kind not in KINDS:
        raise UserError(f"cannot export {kind[:40]!r}: expected one of {', '.join(KINDS)}")
    return run / "exports" / kind


def start(run: Path, kind: str) -> list[str]:
    """Start an export, replacing an earlier one, and return the command. Raises `UserError` if it is in progress."""
    target, job = folder(run, kind), _job(run, kind)
    if jobs.working(job):
        text = "{run}: the export `{kind}` is already in progress"
        raise UserError(Fault("exporting", text, run=run.name, kind=kind))
    if target.is_dir() and not target.is_symlink():
        old = target.with_name(f".{kind}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)  # so that an export is complete or absent
        shutil.rmtree(old)
    command = [sys.executable, "-m", "lowrank_rlhf", "export", run.name, str(target), "--what", kind]
    command += ["--runs", str(run.parent)]
    jobs.start(jobs.make_folders(run, "exports", job.name), command)
    return command


def state(run: Path, kind: str) -> ExportState:
    """Return the state of an export."""
    job = _job(run, kind)
    if jobs.working(job):
        return "working"
    if folder(run, kind).is_dir():
        return "ready"
    record = jobs.job(job)
    return "failed" if record and record.get("exit_code") != 0 else "none"


def log_end(run: Path, kind: str) -> str:
    """Return the last lines that the command of an export printed."""
    log = jobs.log_path(_job(run, kind))
    return "\n".join(last_lines(log, _LOG_LINES)) if log else ""


def error(run: Path, kind: str) -> tuple[str, ...]:
    """Return the parts of the error with which the command of an export ended."""
    return jobs.error(_job(run, kind))


def size(run: Path, kind: str) -> int:
    """Return the bytes of a finished export."""
    return sum(path.stat().st_size for path in _files(folder(run, kind)))


def zipped(run: Path, kind: str) -> Iterator[bytes]:
    """Return the export as the chunks of a zip, uncompressed since weights do not compress.

    Raises `UserError` if the export is missing or too large.
    """
    target = folder(run, kind)
    if not target.is_dir() or target.is_symlink():
        raise UserError(f"{run.name}: export not found: {kind}")
    if size(run, kind) > MAX_BYTES:
        raise UserError(f"{target}: too large for a download ({MAX_BYTES // 2**30} GiB at most). Copy the folder.")
    return _zip(target, f"{run.name}-{kind}")


def _zip(target: Path, name: str) -> Iterator[bytes]:
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:  # type: ignore[call-overload]
        for path in _files(target):
            info = zipfile.ZipInfo.from_file(path, f"{name}/{path.relative_to(target).as_posix()}")
            with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as entry:
                while chunk := source.read(_CHUNK):
                    entry.write(chunk)
                    yield sink.take()
    yield sink.take()


class _Sink:
    """Write-only buffer between the zip and the network; it cannot seek."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, chunk: bytes) -> int:
        self._chunks.append(bytes(chunk))
        return len(chunk)

    def flush(self) -> None:
        """Do nothing: `take` empties the buffer."""

    def take(self) -> bytes:
        """Return and forget the bytes written so far."""
        taken, self._chunks = b"".join(self._chunks), []
        return taken


def _files(target: Path) -> list[Path]:
    """Return the export's own files. A link could lead out of the folder and is left out."""
    return [path for name in file_names(target) if not (path := target / name).is_symlink()]


def _job(run: Path, kind: str) -> Path:
    return run / "exports" / f".{kind}"
