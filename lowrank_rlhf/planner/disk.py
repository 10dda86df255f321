"""Disk space that a run needs, and the file system of its folder."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import CannotFit, Fault, UserError
from lowrank_rlhf.planner.compute_cost import Amounts, policy_steps
from lowrank_rlhf.run.checkpoints import kept_steps
from lowrank_rlhf.run.progress import memory
from lowrank_rlhf.run.results.rounds import split
from lowrank_rlhf.sources.model_shape import Shape
from lowrank_rlhf.stages import Stage

SMALL_FILES = 20 * 10**6
"""Logs, figures and the report of a run."""
_REFUSALS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space on that disk"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "give this user write permission"),
    errno.EIO: "check that disk, which may be failing",
}
_ROW = {"samples.jsonl": 150, "answers.jsonl": 150, "scores.jsonl": 80, "rankings.jsonl": 50, "comparisons.jsonl": 100,
        "prompts.jsonl": 30}  # fmt: skip
"""Bytes per answer in addition to its text."""


@dataclass(frozen=True)
class DiskSpace:
    """State of the file system of a folder. Bytes."""

    writable: bool
    free: int


def disk_space(folder: Path) -> DiskSpace:
    """Return the state of the file system that the folder is or will be on.

    Raises:
        UserError: A parent of the folder is a file.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{folder}: cannot create the run folder: {existing} is a file. Choose another with --runs")
    return DiskSpace(os.access(existing, os.W_OK | os.X_OK), shutil.disk_usage(existing).free)


def check_disk_space(folder: Path, needed: float) -> None:
    """Raise `CannotFit` if the folder is not writable or its disk has fewer than `needed` bytes free."""
    found = disk_space(folder)
    if not found.writable:
        text = "{folder}: folder is not writable. Choose another with --runs FOLDER"
        raise CannotFit(Fault("not_writable", text, folder=str(folder)))
    if found.free < needed:
        text = (
            "{folder}: not enough disk space: about {needed} needed, {free} free. "
            "Free some, or choose another disk with --runs FOLDER"
        )
        values = {"needed": memory(needed), "free": memory(found.free)}
        raise CannotFit(Fault("disk_too_small", text, folder=str(folder), **values))


@contextmanager
def disk_watched(run: Path) -> Iterator[None]:
    """Turn errors of the disk into `CannotFit`, with the file, the reason and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        text = (
            "{path}: {reason}. The run stopped; the work saved in {run} is intact. To resume, {remedy} and rerun the "
            "same command"
        )
        values = {"path": str(error.filename or run), "reason": error.strerror, "remedy": _REFUSALS[error.errno]}
        raise CannotFit(Fault("disk_refused", text, run=str(run), **values)) from None


def output_size(name: str, config: Config, shape: Shape, counts: Amounts) -> float | None:
    """Return the approximate bytes of a stage's output; None if unknown."""
    name = split(name)[1]
    if name.startswith("adapters/"):
        return _adapter_size(name, config, shape, counts.answers)
    if name == "eval.jsonl":
        greedy = 2 * min(config.evaluate.yardstick_prompts, counts.test) * 10 * counts.answer_tokens
        return counts.test * config.evaluate.answers_per_prompt * (300 + 10 * counts.answer_tokens) + greedy
    if name.startswith("report."):
        return 150_000 + 400 * counts.test
    if name in _ROW:
        text = 10 * counts.answer_tokens if name in ("samples.jsonl", "answers.jsonl") else 0
        return counts.answers * (_ROW[name] + text)
    return None


def _adapter_size(name: str, config: Config, shape: Shape, answers: int) -> float:
    """Return the bytes of an adapter with its heads, and of the policies of earlier steps in the last one's folder.

    `answers` is the number to rank, on which the steps of DPO depend; 0 for the least.
    """
    headed = name in ("adapters/reward", "adapters/critic")
    more_heads = shape.hidden * (config.reward.members - 1) if name == "adapters/reward" else 0
    adapter = 4 * (shape.adapter(config.lora, config.reward.layers if headed else None) + more_heads) + 30_000
    kept = kept_steps(policy_steps(config, answers), config.ppo.evaluate_every)
    return adapter * (1 + len(kept)) if name == "adapters/policy-last" else adapter


def working_size(stage: Stage, config: Config, shape: Shape) -> float:
    """Return the bytes of a stage's checkpoints: adapters with Adam's two moments.

    Two checkpoints are kept while a third is written. Stage `ppo` also keeps the best policy, once by itself and once
    in each checkpoint.
    """
    policy, headed = shape.adapter(config.lora), shape.adapter(config.lora, config.reward.layers)
    critic = headed if "adapters/critic" in stage.outputs else 0
    trained = {"sft": policy, "reward": headed, "ppo": policy + critic}.get(stage.kind, 0)
    best = 4 * policy if stage.kind == "ppo" else 0
    return 3 * (12 * trained + best) + best


def smallest_need(stages: list[Stage], config: Config, shape: Shape | None) -> float:
    """Return the least bytes that these stages write, from the shape alone: adapters and the largest checkpoints."""
    if shape is None:
        return SMALL_FILES
    names = [split(name)[1] for stage in stages for name in stage.outputs]
    adapters = sum(_adapter_size(name, config, shape, 0) for name in names if name.startswith("adapters/"))
    return SMALL_FILES + adapters + max((working_size(stage, config, shape) for stage in stages), default=0)
