"""Values of a long evaluation, kept as they are computed, so that an interrupted one resumes."""

import hashlib
import json
from pathlib import Path
from typing import Any

from lowrank_rlhf.run.files import append_line, read_lines


class KeptValues:
    """JSON lines `{"digest": ..., "value": ...}`; a line that a crash left incomplete does not count."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, Any] = {}
        for line in read_lines(path):
            try:
                row = json.loads(line)
                self._values[row["digest"]] = row["value"]
            except (ValueError, KeyError, TypeError):
                continue

    def get(self, digest: str) -> Any:
        """Return the value kept under a digest, or None."""
        return self._values.get(digest)

    def add(self, digest: str, value: Any) -> None:
        """Keep a value, which JSON can represent exactly."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        append_line(self._path, {"digest": digest, "value": value})
        self._values[digest] = value


def digest_of(*parts: Any) -> str:
    """Return the SHA-256 of all that a value depends on, as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
