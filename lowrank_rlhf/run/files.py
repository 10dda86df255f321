"""Atomic reading and writing of files: a crash leaves the old or the new contents, never a part."""

import glob
import hashlib
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run import fault_points

SCHEMA = 1
"""Schema version of a run folder, in its env.json, and of each JSON file in it (decision 0014)."""
_DAMAGED = "The file was edited or is damaged: restore it, or delete it to compute its contents again"
_SETTLED_NANOSECONDS = 2_000_000_000
"""Age from which a file's times identify its contents: two changes in one tick of the clock have equal times."""
_digests: dict[tuple[int, ...], str] = {}


class DamagedRecord(UserError):
    """A JSON file of a run is damaged: not an object, or not in its form."""


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


def read_record(path: Path, form: type[BaseModel] | None = None) -> dict[str, Any] | None:
    """Return the contents of a JSON file of a run, or None if it is missing.

    Raises `UserError` for a file of a newer version, and `DamagedRecord` for one that is no JSON object or does not
    match `form`. Without a `schema` it is of version 1.
    """
    if path.is_dir():
        raise DamagedRecord(f"{path}: is a folder; a JSON file is expected. Move the folder away")
    found = read_json(path)
    if found is None:
        if path.exists():
            raise DamagedRecord(f"{path}: not a JSON object. {_DAMAGED}")
        return None
    schema = found.get("schema", SCHEMA)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise UserError(f"{path}: written by a newer version of lowrank_rlhf (schema {schema}); update lowrank_rlhf")
    if form:
        try:
            form.model_validate(found)
        except ValidationError as error:
            fault = error.errors()[0]
            raise DamagedRecord(f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}. {_DAMAGED}") from None
    return found


def read_lines(path: Path) -> list[str]:
    """Return the lines of a JSONL file, none if it is missing.

    Only a newline ends one: `str.splitlines` would also split at U+2028, which JSON allows inside a string.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of the sorted relative paths and hashes of a folder's files.

    A process reads an unchanged file once.
    """
    if path.is_dir():
        listing = "".join(f"{name}\0{sha256(path / name)}\n" for name in file_names(path))
        return hashlib.sha256(listing.encode()).hexdigest()
    with path.open("rb") as file:
        state = file_state(os.fstat(file.fileno()))
        if state in _digests:
            return _digests[state]
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time_ns() - max(state[-2:]) > _SETTLED_NANOSECONDS:
        _digests[state] = digest
    return digest


def file_state(status: os.stat_result) -> tuple[int, ...]:
    """Return device, inode, size and times of the last changes, which differ after any change of the file."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


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


class Trash:
    """Folder into which files and folders are renamed before they are deleted: each vanishes in one step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, path: Path) -> None:
        """Remove a file or folder from its place, if it is there."""
        if path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            os.replace(path, self._folder / uuid.uuid4().hex)

    def empty(self) -> None:
        """Delete everything that was put here."""
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder to fill; it is renamed to `target` at the end of the block, and deleted after an error.

    Leftovers of killed processes are deleted first; a folder that a living process fills is locked, on any host that
    shares the disk. Raises OSError if `target` is a file or not empty.
    """
    target = target.absolute()
    _clear_unfinished(target)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.new")
    with _locked(temporary):
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


@contextmanager
def _locked(temporary: Path) -> Iterator[None]:
    """Lock a temporary folder, which need not exist, inside the block. Raises `Timeout` if a process has locked it."""
    lock = temporary.with_name(f"{temporary.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock, timeout=0):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows deletes no open file
                lock.unlink(missing_ok=True)


def _clear_unfinished(target: Path) -> None:
    """Delete the temporary folders, and their locks, that ended processes left for this target."""
    left = [*target.parent.glob(f".{glob.escape(target.name)}.*.new*")] if target.parent.is_dir() else []
    for temporary in {path.with_suffix("") if path.suffix == ".lock" else path for path in left}:
        with suppress(Timeout), _locked(temporary):
            shutil.rmtree(temporary, ignore_errors=True)


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
