"""What the last bits of a run depend on beside its config: decided once, and kept with the run."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.base import Base, load_base
from lowrank_rlhf.models.precision import NoBfloat16
from lowrank_rlhf.run.directory import read_record, write_json_atomic
from lowrank_rlhf.run.distributed import ProcessGroup
from lowrank_rlhf.run.progress import Progress

FILE = "precision.json"
_FORMATS = ("float32", "bfloat16")


def load_in_the_runs_format(config: ModelConfig, run: Path, progress: Progress, group: ProcessGroup) -> Base:
    """The base; with `compute_dtype: auto` in the format in which the run in that folder began, if it has begun.

    `auto` is a race on this machine, and another process may find another winner: a run that went on would not end with
    the same weights. Nor would it on another number of threads, which add in another order. That is only said, for the
    run's own number might be far too many here. Raises `UserError` where this machine cannot compute in its format.
    """
    kept = read_record(run / FILE) or {}
    began_as = kept.get("compute_dtype") if kept.get("compute_dtype") in _FORMATS else None
    base = _load(config, began_as, run, progress, group)
    threads = torch.get_num_threads()
    began_on = kept.get("threads", threads)
    if began_on != threads:
        progress.say(
            f"NOTE: this run began on {began_on} CPU threads ({run / FILE}) and goes on with {threads}: its results "
            "will differ in their last bits from an uninterrupted run's. "
            f"OMP_NUM_THREADS={began_on} in front of the command avoids that"
        )
    dtype = began_as or str(base.compute_dtype).removeprefix("torch.")
    found = {"schema": 1, "compute_dtype": dtype, "threads": began_on}
    if found != kept:
        with suppress(OSError):  # a run on a read-only disk can still be looked at
            write_json_atomic(run / FILE, found)
    return base


def _load(config: ModelConfig, began_as: Any, run: Path, progress: Progress, group: ProcessGroup) -> Base:
    if config.compute_dtype != "auto" or began_as is None:
        return load_base(config, progress, group)
    try:
        return load_base(config.model_copy(update={"compute_dtype": began_as}), progress, group)
    except NoBfloat16:
        raise UserError(
            f"model.compute_dtype: auto chose {began_as} when this run began ({run / FILE}), and this machine's CPU "
            "dies of it. Go on where it began, or begin again with model.compute_dtype=float32 and another name: "
            "name=..."
        ) from None
