"""Cache folder of the package, with checksums of large files: an unchanged file is read once."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from pathlib import Path

from lowrank_rlhf.run.files import read_json, write_json_atomic
from lowrank_rlhf.run.progress import Progress

_READ_BY_TRANSFORMERS = {".safetensors", ".json", ".jinja", ".model", ".txt"}
_CHUNK = 1 << 22
_LARGE = 1 << 30
_KEY = ("path", "size", "mtime_ns", "inode")
_known: dict[tuple[str, int, int, int], str] = {}


def cache_folder() -> Path:
    """Return the folder of converted models: `$LOWRANK_RLHF_CACHE`, or `~/.cache/lowrank_rlhf`."""
    return Path(os.environ.get("LOWRANK_RLHF_CACHE") or Path.home() / ".cache" / "lowrank_rlhf").expanduser()


def file_checksum(path: Path, progress: Progress | None = None) -> str:
    """Return the SHA-256 of a file, from the cache if name, size, modification time and inode are unchanged."""
    absolute, about = str(path.absolute()), path.stat()
    key = (absolute, about.st_size, about.st_mtime_ns, about.st_ino)
    if key not in _known:
        note = cache_folder() / "checksums" / f"{hashlib.sha256(absolute.encode()).hexdigest()[:16]}.json"
        noted = read_json(note) or {}
        if tuple(noted.get(name) for name in _KEY) == key:
            _known[key] = str(noted["sha256"])
        else:
            _known[key] = _read(path, about.st_size, progress)
            with suppress(OSError):  # a cache that cannot be written only costs time
                values = zip(_KEY, key, strict=True)
                write_json_atomic(note, {**dict(values), "sha256": _known[key]})
    return _known[key]


def folder_checksum(folder: Path, progress: Progress | None = None) -> str:
    """Return the SHA-256 over names and checksums of the files that transformers reads (no README, no licence)."""
    files = sorted(path for path in folder.iterdir() if path.suffix in _READ_BY_TRANSFORMERS and path.is_file())
    return files_checksum(files, progress)


def files_checksum(files: Iterable[Path], progress: Progress | None = None) -> str:
    """Return the SHA-256 over names and checksums of files, in the given order."""
    listing = "".join(f"{path.name}\0{file_checksum(path, progress)}\n" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def first_damaged(folder: Path, note: Path, progress: Progress | None = None) -> str | None:
    """Return the name of a file of the folder whose checksum is not the one in `note`, or None.

    Files without one, from older versions, are added to it: later damage is noticed.
    """
    noted = read_json(note) or {}
    files = sorted(path for path in folder.iterdir() if path.suffix in _READ_BY_TRANSFORMERS and path.is_file())
    found = {path.name: file_checksum(path, progress) for path in files if path != note}
    for name, checksum in found.items():
        if noted.get(name, checksum) != checksum:
            return name
    if found.keys() - noted.keys():
        with suppress(OSError):  # a cache that cannot be written is checked no further
            write_json_atomic(note, {**noted, **found})
    return None


def _read(path: Path, size: int, progress: Progress | None) -> str:
    digest = hashlib.sha256()
    shown = progress.track("checksum", size >> 20, "MiB") if progress and size > _LARGE else nullcontext()
    with path.open("rb") as file, shown as bar:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if bar:
                bar.advance(len(chunk) >> 20)
    return digest.hexdigest()
