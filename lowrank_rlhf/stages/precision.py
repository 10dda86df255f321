"""The number format of a run: `auto` is decided once, and kept with the run."""

from contextlib import suppress
from pathlib import Path

from lowrank_rlhf.artifacts import read_record, write_json_atomic
from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.base import Base, load_base
from lowrank_rlhf.models.precision import NoBfloat16
from lowrank_rlhf.progress import Progress

FILE = "precision.json"


def load_in_the_runs_format(config: ModelConfig, run: Path, progress: Progress) -> Base:
    """The base; with `compute_dtype: auto` in the format in which the run in that folder began, if it has begun.

    `auto` is a race on this machine, and another process may find another winner: a run that went on would not end with
    the same weights. Raises `UserError` where this machine cannot compute in the run's format.
    """
    if config.compute_dtype != "auto":
        return load_base(config, progress)
    kept = (read_record(run / FILE) or {}).get("compute_dtype")
    if kept not in ("float32", "bfloat16"):
        base = load_base(config, progress)
        with suppress(OSError):  # a run on a read-only disk can still be looked at
            write_json_atomic(
                run / FILE, {"schema": 1, "compute_dtype": str(base.compute_dtype).removeprefix("torch.")}
            )
        return base
    try:
        return load_base(config.model_copy(update={"compute_dtype": kept}), progress)
    except NoBfloat16:
        raise UserError(
            f"model.compute_dtype: auto chose {kept} when this run began ({run / FILE}), and this machine's CPU dies "
            "of it. Go on where it began, or begin again with model.compute_dtype=float32 and another name: name=..."
        ) from None
