"""What a run writes, and whether the file system of its folder can take it."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import CannotFit, UserError
from lowrank_rlhf.planner.compute_cost import Amounts
from lowrank_rlhf.run.progress import memory
from lowrank_rlhf.sources.model_shape import Shape
from lowrank_rlhf.stages import Stage

SMALL_FILES = 20 * 10**6
"""Logs, figures and the report of a run."""
_REFUSALS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room on that disk"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "let this user write there"),
    errno.EIO: "see to that disk, which may be breaking",
}
_ROW = {"samples.jsonl": 150, "answers.jsonl": 150, "scores.jsonl": 80, "rankings.jsonl": 50, "comparisons.jsonl": 100,
        "prompts.jsonl": 30}  # fmt: skip
"""Bytes per answer, beside its text."""


@dataclass(frozen=True)
class Room:
    """The file system under a folder, which need not exist yet."""

    writable: bool
    free: int


def room(folder: Path) -> Room:
    """Look at the nearest folder that exists; raises `UserError` where a file stands in the way."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{folder}: cannot be made a run's folder: {existing} is a file; name another with --runs")
    return Room(os.access(existing, os.W_OK | os.X_OK), shutil.disk_usage(existing).free)


def check_room(folder: Path, needed: float) -> None:
    """Raises `CannotFit` where the folder cannot be written or the disk under it has no room for so many bytes."""
    found = room(folder)
    if not found.writable:
        raise CannotFit(f"{folder}: this folder cannot be written; choose another with --runs FOLDER")
    if found.free < needed:
        raise CannotFit(
            f"{folder}: the run needs about {memory(needed)} of disk and {memory(found.free)} are free; "
            "free some, or choose another disk with --runs FOLDER"
        )


@contextmanager
def disk_watched(run: Path) -> Iterator[None]:
    """Around the work on a run: where the disk refuses, `CannotFit` says at which file, why, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise CannotFit(
            f"{error.filename or run}: {error.strerror}. The run stopped, and what it had saved in {run} is as it was: "
            f"{_REFUSALS[error.errno]}, then the same command goes on from there"
        ) from None


def output_size(name: str, config: Config, shape: Shape, counts: Amounts) -> float | None:
    """Bytes of one of a stage's outputs, about; None where nothing tells."""
    if name.startswith("adapters/"):
        headed = name in ("adapters/reward", "adapters/critic")
        return 4 * shape.adapter(config.lora, config.reward.layers if headed else None) + 30_000
    if name == "eval.jsonl":
        return counts.held_out * (300 + 10 * counts.answer_tokens)
    if name.startswith("report."):
        return 150_000 + 400 * counts.held_out
    if name in _ROW:
        text = 10 * counts.answer_tokens if name in ("samples.jsonl", "answers.jsonl") else 0
        return counts.answers * (_ROW[name] + text)
    return None


def working_size(stage: Stage, config: Config, shape: Shape) -> float:
    """Bytes of a stage's checkpoints: adapters with Adam's two moments; two are kept while a third is written.

    Beside them stands the best policy, which each checkpoint of its stage holds too.
    """
    policy, headed = shape.adapter(config.lora), shape.adapter(config.lora, config.reward.layers)
    critic = headed if "adapters/critic" in stage.writes else 0
    trained = {"sft": policy, "reward": headed, "ppo": policy + critic}.get(stage.name, 0)
    best = 4 * policy if stage.name == "ppo" else 0
    return 3 * (12 * trained + best) + best


def smallest_need(stages: list[Stage], config: Config, shape: Shape | None) -> float:
    """Bytes that these stages write at least, from the shape alone: the adapters, and the largest checkpoints."""
    if shape is None:
        return SMALL_FILES
    policy, headed = shape.adapter(config.lora), shape.adapter(config.lora, config.reward.layers)
    names = [name for stage in stages for name in stage.writes if name.startswith("adapters/")]
    adapters = sum(4 * (headed if name in ("adapters/reward", "adapters/critic") else policy) for name in names)
    return SMALL_FILES + adapters + max((working_size(stage, config, shape) for stage in stages), default=0)
