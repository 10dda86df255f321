"""Read the rows of a source: a local file in a supported format, or a data set of the hub."""

import gzip
import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path

from lowrank_rlhf.data.readers.hub import SCHEME, hub_rows
from lowrank_rlhf.data.readers.json_lines import json_rows
from lowrank_rlhf.data.readers.rows import MOST_UNPACKED, BadRow, Row
from lowrank_rlhf.data.readers.tables import csv_rows, parquet_rows
from lowrank_rlhf.errors import UserError

Reader = Callable[[bytes, str], list[Row | BadRow]]

READERS: dict[str, Reader] = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
}


def read_rows(source: str | Path) -> list[Row | BadRow]:
    """Return all rows of a file (JSONL, a JSON list, CSV or Parquet, also with .gz) or of `hub:OWNER/NAME`.

    Raises `UserError` if the source cannot be read, or if an error makes the rest of it unreadable.
    """
    if str(source).startswith(SCHEME):
        return hub_rows(str(source))
    path = Path(source)
    content = _content(path)
    kind = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    reader = READERS.get(kind.lower()) or _by_content(content)
    if reader is None:
        raise UserError(f"{path}: unknown file type. Expected {', '.join(READERS)}, or one of these with .gz")
    if reader is not parquet_rows:
        content = content.removeprefix(b"\xef\xbb\xbf")
    return reader(content, str(path))


def _by_content(content: bytes) -> Reader | None:
    if content.startswith(b"PAR1"):
        return parquet_rows
    return json_rows if content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[", b"") else None


def check_source(source: str) -> None:
    """Raise `UserError` if a local file does not exist. Nothing is read, and the hub is not contacted."""
    path = Path(source)
    if source.startswith(SCHEME):
        return
    # Path's own methods raise OSError for a name that is too long and for a folder that may not be entered.
    if os.path.isdir(path):
        raise UserError(f"{path}: expected a file, got a folder")
    if not os.path.exists(path):
        raise UserError(f"{path}: file not found. Relative paths start at {Path.cwd()}")


def _content(path: Path) -> bytes:
    check_source(str(path))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        with gzip.open(io.BytesIO(content)) as packed:
            content = packed.read(MOST_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: the gzip file is damaged or cut short ({error})") from None
    if len(content) > MOST_UNPACKED:
        raise UserError(f"{path}: unpacks to more than {MOST_UNPACKED >> 20:,} MiB. Unpack it yourself, or split it")
    return content
