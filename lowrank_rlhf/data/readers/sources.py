"""Read the rows of a source: a local file in a supported format, or a data set of the hub."""

import gzip
import io
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path

from lowrank_rlhf.data.readers.hub import SCHEME, hub_rows, is_downloaded, parse_source
from lowrank_rlhf.data.readers.json_lines import json_rows
from lowrank_rlhf.data.readers.rows import MOST_UNPACKED, BadRow, Row
from lowrank_rlhf.data.readers.tables import csv_rows, parquet_rows
from lowrank_rlhf.data.readers.text_lines import text_rows
from lowrank_rlhf.errors import Fault, UserError
from lowrank_rlhf.sources.remote.modelscope import SCHEME as MODELSCOPE
from lowrank_rlhf.sources.remote.modelscope import data_source, modelscope_file

BUILTIN = Path(__file__).parents[1] / "builtin"
_LFS = b"version https://git-lfs.github.com/spec/"
_HUB_PAGE = re.compile(r"https?://huggingface\.co/datasets/([\w.-]+/[\w.-]+)")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

Reader = Callable[[bytes, str], list[Row | BadRow]]

READERS: dict[str, Reader] = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
    ".txt": text_rows,
}


def read_rows(source: str | Path) -> list[Row | BadRow]:
    """Return all rows of a file (JSONL, a JSON list, CSV, Parquet or text, also with .gz) or of `hub:OWNER/NAME`.

    Raises `UserError` if the source cannot be read, or if an error makes the rest of it unreadable.
    """
    path = modelscope_file(str(source)) if str(source).startswith(MODELSCOPE) else resolve(source)
    if path is None:
        return hub_rows(str(source))
    content = _content(path)
    kind = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    reader = READERS.get(kind.lower()) or _by_content(content)
    if reader is None:
        raise UserError(
            Fault(
                "unknown_type",
                "{path}: unknown file type. Expected {types}, or one of these with .gz",
                path=path,
                types=", ".join(READERS),
            )
        )
    if reader is not parquet_rows:
        content = content.removeprefix(b"\xef\xbb\xbf")
    return reader(content, str(path))


def _by_content(content: bytes) -> Reader | None:
    if content.startswith(b"PAR1"):
        return parquet_rows
    return json_rows if content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[", b"") else None


def local_file(source: str) -> Path:
    """Return the path of a source, which need not exist: a file of ModelScope is in the cache."""
    return data_source(source).cached if source.startswith(MODELSCOPE) else Path(source)


def is_here(source: str) -> bool:
    """Return False for a data set of the hub or of ModelScope that is not downloaded; none is contacted."""
    if source.startswith(MODELSCOPE):
        return data_source(source).cached.is_file()
    return not source.startswith(SCHEME) or is_downloaded(source)


def resolve(source: str | Path) -> Path | None:
    """Return the file of a source, None for a data set of a hub. Nothing is read, and no hub is contacted.

    Raises `UserError` for an unknown built-in set, for a file that does not exist, and for a URL.
    """
    name = str(source)
    if name.startswith(MODELSCOPE):
        data_source(name)
        return None
    if name.startswith(SCHEME):
        parse_source(name)
        return None
    if name.startswith("builtin:"):
        return _built_in(name.removeprefix("builtin:"))
    path = Path(name)
    # Path's own methods raise OSError for a name that is too long and for a folder that may not be entered.
    if os.path.isdir(path):
        raise UserError(Fault("folder_not_file", "{path}: expected a file, got a folder", path=path))
    if not os.path.exists(path):
        raise UserError(Fault("not_found", "{name}: {why}", name=name, why=_not_found(name)))
    return path


def _not_found(name: str) -> str:
    if page := _HUB_PAGE.match(name):
        return f"URLs are not read. Set {SCHEME}{page[1]}"
    if "://" in name:
        return "URLs are not read. Download the file and set its path"
    if name.startswith("~"):
        return f"~ is not expanded. Set {os.path.expanduser(name)}"
    if any(character in name for character in "*?["):
        return "file not found, and patterns are not expanded. Join the files, and set the path of the result"
    hub = f". For a data set of the Hugging Face hub set {SCHEME}{name}" if _HUB_NAME.fullmatch(name) else ""
    return f"file not found. Relative paths start at {Path.cwd()}{hub}"


def _built_in(name: str) -> Path:
    names = sorted(path.stem for path in BUILTIN.glob("*.jsonl"))
    if name not in names:
        raise UserError(f"built-in set not found: {name!r}. Available: {', '.join(names)}")
    return BUILTIN / f"{name}.jsonl"


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            Fault("unreadable", "{path}: cannot be read ({reason})", path=path, reason=error.strerror)
        ) from None
    if content.startswith(_LFS):
        raise UserError(
            Fault(
                "lfs_pointer",
                "{path}: a Git LFS pointer, not the data. Run `git lfs pull` in its repository",
                path=path,
            )
        )
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        with gzip.open(io.BytesIO(content)) as packed:
            content = packed.read(MOST_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            Fault("bad_gzip", "{path}: the gzip file is damaged or cut short ({reason})", path=path, reason=error)
        ) from None
    if len(content) > MOST_UNPACKED:
        raise UserError(
            Fault(
                "too_large_unpacked",
                "{path}: unpacks to more than {size:,} MiB. Unpack it yourself, or split it",
                path=path,
                size=MOST_UNPACKED >> 20,
            )
        )
    return content
