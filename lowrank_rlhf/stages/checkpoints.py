"""Checkpoints of a stage that trains one role: its weights and its optimiser."""

from pathlib import Path

import torch

from lowrank_rlhf.artifacts import latest_checkpoint, save_checkpoint
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.storage import load_optimizer, load_role, save_optimizer, save_role
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
