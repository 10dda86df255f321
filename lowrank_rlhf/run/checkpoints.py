"""Checkpoints of a stage, and the policies of a few steps that stay after it."""

import math
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run import fault_points
from lowrank_rlhf.run.files import (
    SCHEMA,
    DamagedRecord,
    file_names,
    read_record,
    sha256,
    sync,
    sync_folder,
    write_json_atomic,
)
from lowrank_rlhf.run.outputs import file_fault

_MANIFEST = "manifest.json"
_KEPT = 2
"""Number of checkpoints kept: the newest, and one in case it is damaged."""
_STEP = re.compile(r"step-(\d{6,})")


def kept_steps(steps: int, every: int) -> list[int]:
    """Return the steps whose policy stays when training of `steps` steps ends, evaluated after each `every` of them.

    At most three: the evaluations nearest to a quarter, half and three quarters of the way. The last step is none of
    them, since its policy has a folder of its own.
    """
    evaluations = (steps - 1) // every  # before the last step
    if not evaluations:
        return []
    nearest = (math.ceil(steps * quarter / (4 * every) - 0.5) for quarter in (1, 2, 3))  # the earlier of two
    return sorted({every * min(max(1, number), evaluations) for number in nearest})


def step_name(step: int) -> str:
    """Return the name of a step's folder, as `checkpoints` reads it."""
    return f"step-{step:06d}"


def save_checkpoint(folder: Path, step: int, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder, rename it to `step-000050` in `folder`, and delete all but the last two."""
    temporary = folder / ".checkpoint"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    fault_points.point("checkpoint: filled")
    sync(temporary)
    names = file_names(temporary)
    write_json_atomic(
        temporary / _MANIFEST,
        {
            "schema": SCHEMA,
            "step": step,
            "files": {name: sha256(temporary / name) for name in names},
            "bytes": {name: (temporary / name).stat().st_size for name in names},
        },
    )
    target = folder / step_name(step)
    if target.exists():
        shutil.rmtree(target)
    os.replace(temporary, target)
    fault_points.point("checkpoint: renamed")
    sync_folder(folder)
    for _, path in checkpoints(folder)[:-_KEPT]:
        shutil.rmtree(path)
        fault_points.point("checkpoint: an older one deleted")


def latest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """Return step and folder of the newest intact checkpoint; rename damaged ones, with a warning."""
    for step, path in reversed(checkpoints(folder)):
        damage = _damage(path)
        if not damage:
            return step, path
        aside = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
        warnings.warn(
            f"{path}: damaged checkpoint, renamed to {aside.name}: {'; '.join(damage)}. "
            "The stage resumes from the previous checkpoint, or from its beginning",
            stacklevel=2,
        )
    return None


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return step and folder of each checkpoint or kept policy in a folder, oldest first; they may be damaged."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted((int(match[1]), path) for path in paths if (match := _STEP.fullmatch(path.name)))


def check_checkpoint(checkpoint: Path) -> None:
    """Raise `UserError` if a checkpoint is damaged."""
    if damage := _damage(checkpoint):
        raise UserError(f"{checkpoint}: damaged checkpoint: {'; '.join(damage)}. Choose another model")


def _damage(checkpoint: Path) -> list[str]:
    """Return a description of each damaged file; empty if the checkpoint is intact."""
    try:
        manifest = read_record(checkpoint / _MANIFEST) or {}
    except DamagedRecord:
        manifest = {}
    files, sizes = manifest.get("files"), manifest.get("bytes", {})  # earlier versions recorded no sizes
    if not isinstance(files, dict):
        return [f"{_MANIFEST} is missing or cut short"]
    found = [file_fault(checkpoint / name, name, digest, sizes.get(name)) for name, digest in files.items()]
    return [fault for fault in found if fault]
