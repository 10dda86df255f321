"""Checkpoints of a stage that trains one role: its weights and its optimiser."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lowrank_rlhf.artifacts import latest_checkpoint, save_checkpoint
from lowrank_rlhf.errors import Stopped
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.storage import load_optimizer, load_role, save_optimizer, save_role
from lowrank_rlhf.progress import Bar
from lowrank_rlhf.stages.context import Context

_OPTIMIZER = "optimizer.safetensors"


def resume(context: Context, stage: str, role: Role, optimizer: torch.optim.Optimizer) -> int:
    """Bring role and optimiser to the stage's last checkpoint, forget later metrics; the steps that are done, or 0."""
    done = 0
    if found := latest_checkpoint(context.work(stage)):
        done, folder = found
        load_role(context.roles, role, folder / role.name.lower())
        load_optimizer(optimizer, folder / _OPTIMIZER)
    context.metrics.truncate(stage, done)
    return done


def save(context: Context, stage: str, step: int, role: Role, optimizer: torch.optim.Optimizer) -> None:
    """Keep role and optimiser as they are after that many steps."""

    def write(folder: Path) -> None:
        save_role(context.roles, role, folder / role.name.lower())
        save_optimizer(optimizer, folder / _OPTIMIZER)

    save_checkpoint(context.work(stage), step, write)


@contextmanager
def saved_if_stopped(
    context: Context, stage: str, bar: Bar, role: Role, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Around a training loop whose bar counts the steps: a stop inside a step saves what the steps before it made.

    No weight moves before a step's last forward and backward; what the step has accumulated is dropped.
    """
    try:
        yield
    except Stopped:
        save(context, stage, bar.count, role, optimizer)
        context.stop.check(f"{stage} is saved at step {bar.count}")
        raise
