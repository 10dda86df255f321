"""Incremental readers of growing files: each read processes only the new bytes."""

import json
import os
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

_FILES_KEPT = 16
_TAIL_BYTES = 16_384


class JsonlTail:
    """Rows of a JSONL file that another process appends to and sometimes replaces."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.version = 0
        """Incremented by each update that changes the rows."""
        self._position: tuple[int, int] = (0, 0)  # inode, bytes read
        self._lock = Lock()

    def update(self) -> None:
        """Read the new lines. An incomplete last line waits for its end."""
        with self._lock:
            try:
                with self.path.open("rb") as file:
                    status = os.fstat(file.fileno())
                    inode, offset = self._position
                    if inode != status.st_ino or offset > status.st_size:  # replaced or truncated
                        offset, self.rows = 0, []
                        self.version += 1
                    file.seek(offset)
                    new = file.read()
            except FileNotFoundError:
                if self.rows:
                    self.rows, self._position, self.version = [], (0, 0), self.version + 1
                return
            complete = new[: new.rfind(b"\n") + 1]
            self._position = (status.st_ino, offset + len(complete))
            if complete:
                self.rows = [*self.rows, *_rows(complete)]
                self.version += 1


def _rows(lines: bytes) -> list[dict[str, Any]]:
    rows = []
    for line in lines.split(b"\n"):
        with suppress(ValueError):  # cut short by a crash
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows


class JsonlTails:
    """Tails of the most recently read files, shared by all visitors of a page."""

    def __init__(self) -> None:
        self._tails: OrderedDict[Path, JsonlTail] = OrderedDict()
        self._lock = Lock()

    def read(self, path: Path) -> tuple[list[dict[str, Any]], int]:
        """Return all rows of a file, none if it is missing, and a number that changes with them."""
        with self._lock:
            tail = self._tails.setdefault(path, JsonlTail(path))
            self._tails.move_to_end(path)
            while len(self._tails) > _FILES_KEPT:
                self._tails.popitem(last=False)
        tail.update()
        return tail.rows, tail.version


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a log, none if it is missing. Reads only the end of a long file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-count:]
