"""Atomic reading and writing of files: a crash leaves the old or the new contents, never a part."""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from lowrank_rlhf.run import fault_points


def write_json_atomic(path: Path, value: Any) -> None:
    """Replace a JSON file in one step, safely on disk; NaN and infinities become null."""
    write_atomic(path, json_text(value))


def json_text(value: Any) -> str:
    """Return a JSON document ending in a newline; NaN and infinities, which JSON lacks, become null."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if the file is missing or truncated."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of the sorted relative paths and hashes of a folder's files."""
    if path.is_dir():
        listing = "".join(f"{name}\0{sha256(path / name)}\n" for name in file_names(path))
        return hashlib.sha256(listing.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def now() -> str:
    """Return the current UTC time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def file_names(folder: Path) -> list[str]:
    """Return the sorted relative paths of all files in a folder and its subfolders."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write_atomic(path: Path, text: str) -> None:
    """Replace a text file in one step, safely on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        fault_points.point(f"{path.name}: temporary written")
        sync(temporary)
        os.replace(temporary, path)
        fault_points.point(f"{path.name}: renamed")
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder to fill; it is renamed to `target` at the end of the block, and deleted after an error.

    Leftovers of killed processes are deleted first. Raises OSError if `target` is a file or not empty.
    """
    _clear_unfinished(target.absolute())
    temporary = target.absolute().with_name(f".{target.absolute().name}.{os.getpid()}.new")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync(temporary)
        fault_points.point(f"{target.name}: filled")
        if target.exists():
            target.rmdir()
        os.rename(temporary, target)
        fault_points.point(f"{target.name}: renamed")
        sync_folder(temporary.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _clear_unfinished(target: Path) -> None:
    """Delete the temporary folders that ended processes left for this target."""
    name = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.new")
    for path in target.parent.iterdir() if target.parent.is_dir() else ():
        maker = name.fullmatch(path.name)
        if maker and (int(maker[1]) == os.getpid() or not psutil.pid_exists(int(maker[1]))):
            shutil.rmtree(path)


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append a JSON object to a file as a line; NaN and infinities become null."""
    line = json.dumps(_plain(row), ensure_ascii=False).encode() + b"\n"
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # truncated by a crash: begin a new line
                line = b"\n" + line
        fault_points.point(f"{path.name}: before a line")
        file.write(line)
    fault_points.point(f"{path.name}: line added")


def sync(path: Path) -> None:
    """Flush a file, or everything in a folder, to disk."""
    if path.is_dir():
        for inner in path.iterdir():
            sync(inner)
        sync_folder(path)
        return
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flush the directory entries of a folder to disk."""
    with suppress(OSError):  # not supported on Windows and some network disks
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
