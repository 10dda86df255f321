"""Files that grow while they are read: each look takes in only what is new."""

import json
import os
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

_FILES_KEPT = 16
_TAIL_BYTES = 16_384


class RowTail:
    """The rows of a JSONL file that another process appends to, and now and then replaces."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.version = 0
        """Rises with each look that found something new."""
        self._place: tuple[int, int] = (0, 0)  # which file, and how much of it is read
        self._lock = Lock()

    def look(self) -> None:
        """Take in what is new. A line that is not whole yet waits for its end."""
        with self._lock:
            try:
                with self.path.open("rb") as file:
                    about = os.fstat(file.fileno())
                    number, offset = self._place
                    if number != about.st_ino or offset > about.st_size:  # replaced, or made anew
                        offset, self.rows = 0, []
                        self.version += 1
                    file.seek(offset)
                    new = file.read()
            except FileNotFoundError:
                if self.rows:
                    self.rows, self._place, self.version = [], (0, 0), self.version + 1
                return
            whole = new[: new.rfind(b"\n") + 1]
            self._place = (about.st_ino, offset + len(whole))
            if whole:
                self.rows = [*self.rows, *_rows(whole)]
                self.version += 1


def _rows(text: bytes) -> list[dict[str, Any]]:
    found = []
    for line in text.split(b"\n"):
        with suppress(ValueError):  # a crash cut it short
            row = json.loads(line)
            if isinstance(row, dict):
                found.append(row)
    return found


class Tails:
    """The files that were looked at last, shared by everybody who looks."""

    def __init__(self) -> None:
        self._tails: OrderedDict[Path, RowTail] = OrderedDict()
        self._lock = Lock()

    def look(self, path: Path) -> tuple[list[dict[str, Any]], int]:
        """All rows of a file that may not be there, and a number that changes when they do."""
        with self._lock:
            tail = self._tails.setdefault(path, RowTail(path))
            self._tails.move_to_end(path)
            while len(self._tails) > _FILES_KEPT:
                self._tails.popitem(last=False)
        tail.look()
        return tail.rows, tail.version


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log that may not be there; of a long one only the end is read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-count:]
