"""Done marks as they are on disk."""

from typing import Any

from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import read_record


def done(run_dir: RunDir, stage: str) -> dict[str, Any] | None:
    return read_record(run_dir.path / "done" / f"{stage}.json")
