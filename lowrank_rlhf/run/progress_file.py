"""`progress.json` of a run: state of the running stage, for programs that watch the run from outside."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, NonNegativeFloat, NonNegativeInt

from lowrank_rlhf.run.files import DamagedRecord, read_record

NAME = "progress.json"


class StageProgress(BaseModel):
    """State of the running stage."""

    stage: str
    unit: str
    """Unit of the counts, such as `steps` or `answers`."""
    done: NonNegativeInt
    total: NonNegativeInt
    seconds_left: NonNegativeFloat | None = None
    """Estimate for the stage; None before the first unit is done."""
    run_seconds_left: NonNegativeFloat | None = None
    """Estimate for the run, later stages included."""
    figures: Mapping[str, float | None] = {}
    """Latest figures of the stage, such as `kl` or `tokens_per_second`; None for one that is not finite."""
    updated_at: str


def read_progress(run: Path) -> StageProgress | None:
    """Return the state that the run's process wrote last, or None for a missing or damaged file.

    Raises `UserError` for a file of a newer version.
    """
    with suppress(DamagedRecord):
        found = read_record(run / NAME, StageProgress)
        return StageProgress.model_validate(found) if found else None
    return None


def write_progress(run: Path, state: StageProgress) -> None:
    """Replace the file in one step.

    It is not forced to disk, because it means nothing after a crash, and errors are ignored: they must not stop a run.
    """
    temporary = run / f".{NAME}.new"
    with suppress(OSError):
        temporary.write_text(state.model_dump_json(), encoding="utf-8")
        os.replace(temporary, run / NAME)


def remove_progress(run: Path) -> None:
    """Delete the file if it exists."""
    with suppress(OSError):
        (run / NAME).unlink(missing_ok=True)
