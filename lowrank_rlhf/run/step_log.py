"""Logs of the steps of the stages: metrics.jsonl, watched.jsonl and rollouts.jsonl."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from lowrank_rlhf.run.files import append_line, file_state, read_lines, write_atomic
from lowrank_rlhf.run.results.parts import RowsSum


def logs_in(folder: Path) -> "tuple[StepLog, StepLog, StepLog]":
    """Return the logs of a run or of a later round: metrics.jsonl, watched.jsonl and rollouts.jsonl."""
    return StepLog(folder / "metrics.jsonl"), StepLog(folder / "watched.jsonl"), StepLog(folder / "rollouts.jsonl")


class StepLog:
    """Log of the steps of the stages: one JSON object per line, readable while it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.also: Callable[[str, int, dict[str, Any]], None] | None = None  # called with each appended row

    def pass_on_to(self, log: "StepLog", prefix: str) -> None:
        """Call the other log's `also` with each appended row, its stage named with a prefix."""
        if log is not self:
            self.also = lambda stage, step, row: log.also(f"{prefix}{stage}", step, row) if log.also else None

    def sums(self) -> dict[str, RowsSum]:
        """Return number and SHA-256 of each stage's lines. An unchanged file is read once."""
        try:
            return _sums(self.path, file_state(self.path.stat()))
        except FileNotFoundError:
            return {}

    def append(self, stage: str, step: int, **row: Any) -> None:
        """Append a row; NaN and infinities become null."""
        append_line(self.path, {"stage": stage, "step": step, **row})
        if self.also:
            self.also(stage, step, row)

    def read(self, stage: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the rows of one stage or of all; incomplete lines, as left by a crash, are skipped."""
        for _, row in _lines(self.path):
            if stage is None or row["stage"] == stage:
                yield row

    def lines(self, stage: str) -> list[str]:
        """Return the lines of a stage's rows."""
        return [line for line, row in _lines(self.path) if row["stage"] == stage]

    def replace(self, stage: str, lines: Sequence[str]) -> None:
        """Replace all rows of a stage by these lines."""
        self.truncate(stage, -1)
        if lines:
            kept = [line for line, _ in _lines(self.path)]
            write_atomic(self.path, "".join(f"{line}\n" for line in (*kept, *lines)))

    def truncate(self, stage: str, step: int) -> None:
        """Delete the stage's rows after a step, so that resuming from its checkpoint repeats none."""
        if self.path.exists():
            kept = [line for line, row in _lines(self.path) if row["stage"] != stage or row["step"] <= step]
            write_atomic(self.path, "".join(f"{line}\n" for line in kept))


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in read_lines(path):
        with suppress(json.JSONDecodeError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int) and "stage" in row:
                yield line, row


@lru_cache(maxsize=16)
def _sums(path: Path, _state: tuple[int, ...]) -> dict[str, RowsSum]:
    lines = defaultdict[str, list[str]](list)
    for line, row in _lines(path):
        lines[str(row["stage"])].append(line)
    return {stage: _rows_sum(each) for stage, each in lines.items()}


def _rows_sum(lines: Sequence[str]) -> RowsSum:
    return RowsSum(rows=len(lines), sha256=hashlib.sha256("\n".join(lines).encode()).hexdigest())


NO_ROWS = _rows_sum(())
