"""Files of prompts that a person drops or pastes into the page: kept beside the runs, and read for a preview."""

import os
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from lowrank_rlhf.config.data import Columns
from lowrank_rlhf.dashboard.access.guard import MAX_UPLOAD_BYTES
from lowrank_rlhf.data.columns import UNREAD, WORSE
from lowrank_rlhf.data.inspection import Figures, figures
from lowrank_rlhf.data.loading import Loaded, load
from lowrank_rlhf.data.readers.rows import Row
from lowrank_rlhf.data.readers.sources import READERS, read_rows
from lowrank_rlhf.errors import Fault, UserError

FOLDER = "_data"
"""Folder of the files inside the folder of all runs; no run can have its name."""
PASTED = "my-prompts.txt"
MAX_KEPT_BYTES = 2**30
"""Most bytes of all files in `FOLDER`."""
_LONGEST_NAME = 80  # bytes of UTF-8
_SHOWN_ROWS = 3


class Preview(NamedTuple):
    """Contents of a file. `loaded` is None if it cannot be read as prompts, for the reason `problem`."""

    names: list[str]
    """Columns of the file, in order."""
    rows: list[dict[str, Any]]
    """The first rows."""
    loaded: Loaded | None
    problem: tuple[str, ...] = ()
    """Parts of an error."""
    ignored: tuple[str, ...] = ()
    """Columns that `column_map` leaves out."""
    counts: Figures | None = None


def keep(runs: Path, name: str, content: bytes) -> Path:
    """Write a file into `FOLDER` and return its path; a file with the same content and name is written once.

    A run may still read an earlier file: another content gets another name.

    Raises:
        UserError: The file is too large, of an unknown type, or `FOLDER` is full or a link.
    """
    if len(content) > MAX_UPLOAD_BYTES:
        text = "{name}: larger than {size} MiB. Set its path in data.prompts instead"
        raise UserError(Fault("upload_too_large", text, name=name[:_LONGEST_NAME], size=MAX_UPLOAD_BYTES >> 20))
    wanted, folder = _safe(name), runs / FOLDER
    if folder.is_symlink():
        raise UserError(Fault("folder_is_link", "{folder}: a link. Remove it", folder=str(folder)))
    folder.mkdir(parents=True, exist_ok=True)
    if sum(path.lstat().st_size for path in folder.iterdir()) + len(content) > MAX_KEPT_BYTES:
        text = "{folder}: would hold more than {size} MiB. Delete files that no run reads"
        raise UserError(Fault("uploads_full", text, folder=str(folder), size=MAX_KEPT_BYTES >> 20))
    paths = (folder / _numbered(wanted, number) for number in count(1))
    return next(path for path in paths if _holds(path, content))


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{Path(name).stem}-{number}{Path(name).suffix}"


def _holds(path: Path, content: bytes) -> bool:
    """Write a new file, and return True if the file has this content. An existing file is never changed."""
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return path.is_file() and not path.is_symlink() and path.read_bytes() == content
    except OSError:
        path.unlink(missing_ok=True)  # cut short by a full disk
        raise
    return True


def kept(runs: Path, name: str) -> Path:
    """Return the path of a file that was kept. Raises `UserError` if there is none of that name."""
    path = runs / FOLDER / name
    stem, suffix = os.path.splitext(name)
    named = re.fullmatch(r"[\w-]+", stem) and suffix in READERS
    if not named or path.parent != runs / FOLDER or path.is_symlink() or not path.is_file():
        raise UserError(Fault("file_not_found", "{name}: file not found", name=name[:_LONGEST_NAME]))
    return path


def _safe(name: str) -> str:
    """Return a name of letters, digits, dots, dashes and underscores that is no path and no hidden file."""
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in READERS:
        text = "{name}: unknown file type. Expected {types}"
        raise UserError(Fault("unknown_upload", text, name=name[:_LONGEST_NAME], types=", ".join(READERS)))
    stem = re.sub(r"[^\w-]+", "-", unicodedata.normalize("NFC", stem)).lstrip("-_")
    cut = stem.encode()[:_LONGEST_NAME].decode(errors="ignore").rstrip("-_")
    return f"{cut or 'prompts'}{suffix.lower()}"


def preview(path: Path, columns: Columns) -> Preview:
    """Read a file as a run would. The files last read are kept in memory."""
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        return Preview([], [], None, (Fault("file_not_found", "{name}: file not found", name=path.name),))
    return _preview(path, changed, tuple(columns.items()))


@lru_cache(maxsize=2)  # with and without a choice of columns
def _preview(path: Path, _changed: int, columns: tuple[tuple[str, str | None], ...]) -> Preview:
    try:
        rows = [row.fields for row in read_rows(path) if isinstance(row, Row)]
    except UserError as error:
        return Preview([], [], None, error.parts)
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        loaded = load(path, "data.format", columns=dict(columns))
    except UserError as error:
        return Preview(names, rows[:_SHOWN_ROWS], None, error.parts)
    ignored = tuple(key for key, column in columns if column is None)
    return Preview(names, rows[:_SHOWN_ROWS], loaded, (), ignored, figures(loaded))


def column_map(names: Sequence[str], prompt: str | None, response: str | None) -> Columns:
    """Return the value of `data.columns` for two chosen columns; none is empty: then the format's keys are read.

    With a choice, the other columns that change the meaning of a row are ignored, but not the rejected answers of
    comparisons if no response is chosen.
    """
    chosen = {"prompt": prompt, "response": response}
    mapped: Columns = {key: column for key, column in chosen.items() if column and column != key}
    if not (prompt or response):
        return {}
    kept = {prompt, response, *(WORSE if any(name.startswith("chosen") for name in names) and not response else ())}
    return mapped | {name: None for name in names if name in UNREAD and name not in kept}
