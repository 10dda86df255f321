"""Outputs of a finished stage: sizes and checksums."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lowrank_rlhf.run.files import file_names, sha256
from lowrank_rlhf.run.results.parts import FileSum


def file_sums(folder: Path, names: Iterable[str]) -> dict[str, FileSum]:
    """Return size and SHA-256 of each file: of the named files, and of all files in the named folders."""
    files = [inner for name in names for inner in _files(folder, name)]
    return {name: FileSum(bytes=(folder / name).stat().st_size, sha256=sha256(folder / name)) for name in files}


def faults(folder: Path, sums: Mapping[str, FileSum]) -> Iterator[str]:
    """Yield a message for each file that is missing, cannot be read, or differs from its recorded size or checksum."""
    for name, recorded in sums.items():
        if fault := file_fault(folder / name, name, recorded.sha256, recorded.bytes):
            yield fault


def file_fault(path: Path, name: str, digest: str, size: int | None = None) -> str | None:
    """Compare a file with its recorded SHA-256 and, if known, size; return a message if it differs."""
    try:
        if path.is_dir():
            return f"{name} is a folder instead of a file"
        found = path.stat().st_size
        if size is not None and found != size:
            return f"{name} is {found} bytes instead of {size}"
        return None if sha256(path) == digest else f"{name} does not match its recorded sha256"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"


def _files(folder: Path, name: str) -> list[str]:
    path = folder / name
    return [f"{name}/{inner}" for inner in file_names(path)] if path.is_dir() else [name]
