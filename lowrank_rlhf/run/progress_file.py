"""`progress.json` of a run: how far the stage at work has come, for anything that watches the run from outside."""

from pathlib import Path

from pydantic import BaseModel, NonNegativeFloat, NonNegativeInt

from lowrank_rlhf.run.directory import read_record

NAME = "progress.json"


class StageProgress(BaseModel):
    """State of the stage at work."""

    stage: str
    unit: str
    """What is counted, such as `steps` or `answers`."""
    done: NonNegativeInt
    total: NonNegativeInt
    seconds_left: NonNegativeFloat | None = None
    """Estimate for the stage; None until there is a pace."""
    run_seconds_left: NonNegativeFloat | None = None
    """Estimate for the run, later stages included."""
    figures: dict[str, float] = {}
    """Latest figures of the stage, such as `kl` or `tokens_per_second`."""
    updated_at: str


def read_progress(run: Path) -> StageProgress | None:
    """Return the state that the run's process wrote last, or None. A damaged file counts as none."""
    found = read_record(run / NAME)
    return StageProgress.model_validate(found) if found else None
