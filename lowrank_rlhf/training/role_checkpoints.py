"""Checkpoints of a stage that trains one role: its weights, its optimiser and its skipped steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from lowrank_rlhf.errors import Stopped
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.storage import load_optimizer, load_role, save_optimizer, save_role
from lowrank_rlhf.run.checkpoints import latest_checkpoint, save_checkpoint
from lowrank_rlhf.run.directory import read_record, write_json_atomic
from lowrank_rlhf.run.progress import Bar
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.nan_recovery import Breakdowns

_OPTIMIZER, _BREAKDOWNS = "optimizer.safetensors", "breakdowns.json"


@dataclass
class Checkpoints:
    """Those of one stage."""

    session: Session
    stage: str
    role: Role
    optimizer: torch.optim.Optimizer
    breakdowns: Breakdowns = field(default_factory=Breakdowns)

    def resume(self) -> int:
        """Go to the last checkpoint, or make the first one; forget later metrics. Returns the steps that are done."""
        found = latest_checkpoint(self.session.work(self.stage))
        if found is None:
            self.save(0)
        done = self._load(*found) if found else 0
        self.session.metrics.truncate(self.stage, done)
        return done

    def roll_back(self) -> int:
        """Go to the last checkpoint, at half the rate. Returns the steps that are done."""
        lowered = self.breakdowns.lowered()
        done = self.resume()
        self.breakdowns = lowered
        self.save(done)
        return done

    def save(self, step: int) -> None:
        """Keep everything as it is after that many steps."""

        def write(folder: Path) -> None:
            save_role(self.session.roles, self.role, folder / self.role.name.lower())
            save_optimizer(self.optimizer, folder / _OPTIMIZER)
            write_json_atomic(folder / _BREAKDOWNS, {"schema": 1, **vars(self.breakdowns)})

        save_checkpoint(self.session.work(self.stage), step, write)

    @contextmanager
    def saved_if_stopped(self, bar: Bar) -> Iterator[None]:
        """Around a training loop whose bar counts the steps: a stop inside a step saves what those before it made.

        (`Breakdowns.stopped` says when not.) No weight moves before a step's last forward and backward; what the step
        has accumulated is dropped.
        """
        try:
            yield
        except Stopped:
            where = f"at step {bar.count}"
            self.breakdowns.stopped(self.session, self.stage, partial(self.save, bar.count), where)
            raise

    def _load(self, done: int, folder: Path) -> int:
        load_role(self.session.roles, self.role, folder / self.role.name.lower())
        load_optimizer(self.optimizer, folder / _OPTIMIZER)
        saved = read_record(folder / _BREAKDOWNS) or {}
        self.breakdowns = Breakdowns(**{name: saved[name] for name in vars(self.breakdowns) if name in saved})
        return done
