"""Number format and thread count of a run: chosen once, recorded in the run folder, and kept on resume."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.base import Base, load_base
from lowrank_rlhf.models.precision import NoBfloat16
from lowrank_rlhf.run.distributed import ProcessGroup
from lowrank_rlhf.run.files import read_record, write_json_atomic
from lowrank_rlhf.run.progress import Progress

FILE = "precision.json"
_FORMATS = ("float32", "bfloat16")


def load_with_pinned_precision(config: ModelConfig, run: Path, progress: Progress, group: ProcessGroup) -> Base:
    """Load the base; `compute_dtype: auto` keeps the format that a resumed run started with.

    `auto` measures speed, so another process may choose another format, and a resumed run would end in other weights.
    Another number of threads changes the order of summation; that only prints a note, because the run's original number
    may be far too large for this machine. Raises `UserError` if this machine cannot compute in the run's format.
    """
    kept = read_record(run / FILE) or {}
    pinned_dtype = kept.get("compute_dtype") if kept.get("compute_dtype") in _FORMATS else None
    base = _load(config, pinned_dtype, run, progress, group)
    threads = torch.get_num_threads()
    pinned_threads = kept.get("threads", threads)
    if pinned_threads != threads:
        progress.say(
            f"NOTE: this run started with {pinned_threads} CPU threads ({run / FILE}) and resumes with {threads}: its "
            "results will differ in their last bits from an uninterrupted run's. "
            f"Set OMP_NUM_THREADS={pinned_threads} before the command to avoid that"
        )
    dtype = pinned_dtype or str(base.compute_dtype).removeprefix("torch.")
    found = {"schema": 1, "compute_dtype": dtype, "threads": pinned_threads}
    if found != kept:
        with suppress(OSError):  # runs on a read-only disk can still be read
            write_json_atomic(run / FILE, found)
    return base


def _load(config: ModelConfig, pinned_dtype: Any, run: Path, progress: Progress, group: ProcessGroup) -> Base:
    if config.compute_dtype != "auto" or pinned_dtype is None:
        return load_base(config, progress, group)
    try:
        return load_base(config.model_copy(update={"compute_dtype": pinned_dtype}), progress, group)
    except NoBfloat16:
        raise UserError(
            f"model.compute_dtype: auto chose {pinned_dtype} when this run started ({run / FILE}), and this machine's "
            "CPU crashes on it. Resume on the first machine, or set model.compute_dtype=float32 "
            "and another name: name=..."
        ) from None
