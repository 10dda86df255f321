"""Checkpoints of a stage that trains one role: weights, optimizer and skipped steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from lowrank_rlhf.errors import Stopped
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.storage import load_optimizer, save_optimizer, save_role
from lowrank_rlhf.run.checkpoints import latest_checkpoint, save_checkpoint
from lowrank_rlhf.run.files import read_record, write_json_atomic
from lowrank_rlhf.run.progress import Bar, StopRequest
from lowrank_rlhf.run.step_log import StepLog
from lowrank_rlhf.training.nan_recovery import NanRecovery

_OPTIMIZER = "optimizer.safetensors"
_RECOVERY = "breakdowns.json"
"""Name that version 0.1 gave the file of `NanRecovery`; it is kept, so that old checkpoints can be resumed."""


@dataclass
class RoleCheckpoints:
    """Checkpoints in one stage's work folder."""

    folder: Path
    stage: str
    roles: Roles
    role: Role
    optimizer: torch.optim.Optimizer
    metrics: StepLog
    recovery: NanRecovery = field(default_factory=NanRecovery)

    def resume(self) -> int:
        """Load the last checkpoint, or save the first one, and drop later metrics. Returns the completed steps."""
        found = latest_checkpoint(self.folder)
        if found is None:
            self.save(0)
        done = self._load(*found) if found else 0
        self.metrics.truncate(self.stage, done)
        return done

    def roll_back(self) -> int:
        """Load the last checkpoint and halve the learning rate. Returns the completed steps."""
        recovery = self.recovery.after_roll_back()
        done = self.resume()
        self.recovery = recovery
        self.save(done)
        return done

    def save(self, step: int) -> None:
        """Save the state after `step` steps."""

        def write(folder: Path) -> None:
            save_role(self.roles, self.role, folder / self.role.name.lower())
            save_optimizer(self.optimizer, folder / _OPTIMIZER)
            write_json_atomic(folder / _RECOVERY, {"schema": 1, **vars(self.recovery)})

        save_checkpoint(self.folder, step, write)

    @contextmanager
    def saved_if_stopped(self, bar: Bar, stop: StopRequest) -> Iterator[None]:
        """Save the completed steps if the training loop in the block is stopped (see `NanRecovery.save_if_stopped`).

        `bar` counts the steps. No weight moves before a step's last forward and backward, so an unfinished step leaves
        nothing to undo: its accumulated gradients are dropped.
        """
        try:
            yield
        except Stopped:
            position = f"at step {bar.count}"
            self.recovery.save_if_stopped(stop, self.stage, partial(self.save, bar.count), position)
            raise

    def _load(self, done: int, folder: Path) -> int:
        load_role(self.roles, self.role, folder / self.role.name.lower())
        load_optimizer(self.optimizer, folder / _OPTIMIZER)
        saved = read_record(folder / _RECOVERY) or {}
        self.recovery = NanRecovery(**{name: saved[name] for name in vars(self.recovery) if name in saved})
        return done
