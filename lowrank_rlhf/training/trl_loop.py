"""Training loop of the stages that use TRL: settings, atomic optimizer steps, and the guard against NaN."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lowrank_rlhf.models.base import Base
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.training.optimizer_step import NotFinite, atomic_step, check_finite
from lowrank_rlhf.training.trl_bridge import TrlBridge

LOGITS_TOKENS = 512
"""Tokens whose logits TRL's loss computes at once on a CPU, where it makes eight copies of them; 4,096 by itself."""


class AtomicAdamW(torch.optim.AdamW):
    """AdamW that ends the stage if memory runs out inside a step: a retry would start from weights that have moved."""

    def step(self, closure: Any = None) -> Any:
        """Step as AdamW does. Raises `CannotFit` if memory runs out."""
        with atomic_step():
            return super().step(closure)


class FiniteGuard(TrainerCallback):
    """Callback that drops the gradients of a step with a NaN or an infinity, so that the optimizer skips it."""

    def __init__(self, roles: Roles) -> None:
        self.roles = roles
        self.losses: list[torch.Tensor] = []
        self.problem: str | None = None
        """Value that was not finite in the current or last step."""

    def on_forward(self, _: Any, __: Any, output: Any) -> None:
        """Record a forward's loss, as a hook on the model: TRL's log hides a loss that is not finite, or keeps it."""
        if output.loss is not None:  # None for RLOO and GRPO up to TRL 1.15: the gradient norm is checked too
            self.losses.append(output.loss.detach())

    def on_step_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - transformers' signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Forget the last step's losses."""
        self.problem = None
        self.losses.clear()

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,  # noqa: ARG002 - transformers' signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Drop the gradients if a loss or the gradient norm is not finite."""
        parameters = self.roles.parameters(Role.POLICY)
        try:
            check_finite("the loss", float(sum(self.losses)))
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            check_finite("the gradient's norm", float(norm))
        except NotFinite as error:
            self.problem = self.problem or str(error)
        if self.problem is not None:
            for parameter in parameters:
                parameter.grad = None  # the optimizer skips parameters without a gradient


def loop_settings(base: Base, folder: Path, seed: int, *, rows: int, rows_per_pass: int, steps: int) -> dict[str, Any]:
    """Return the settings of transformers' training loop that all trainers share: `steps` of `rows` rows each.

    Rows are taken in the given order: a resumed run drops the ones already seen, and needs no sampler state.
    """
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": rows_per_pass,
        "gradient_accumulation_steps": rows // rows_per_pass,
        "max_steps": steps,
        "train_sampling_strategy": "sequential",
        "bf16": False,  # the base has its number format already, and its layers cast the adapters
        "gradient_checkpointing": False,  # switched on by `load_base` if configured, non-reentrant
        "use_cpu": base.device.type == "cpu",
        "logging_steps": 1,
        "logging_nan_inf_filter": True,  # a NaN would stay in every later step's loss; `FiniteGuard` sees it first
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed % 2**32,
    }


def schedule(optimizer: torch.optim.Optimizer, highest: float, share: Callable[[int], float]) -> LambdaLR:
    """Set the learning rate to `share(step)` of the highest one, counting steps from now."""
    optimizer.zero_grad()  # drop the gradients of an interrupted step
    optimizer.param_groups[0].update(lr=highest, initial_lr=highest)  # LambdaLR multiplies initial_lr
    return LambdaLR(optimizer, share)


def train(roles: Roles, bridge: TrlBridge, trainer: Trainer, guard: FiniteGuard) -> None:
    """Run all of the trainer's steps with the policy acting."""
    trainer.remove_callback(PrinterCallback)
    if roles.base.device.type != "cuda":
        with suppress(ImportError):  # a TRL without it
            from trl.kernels import chunked_logprob

            chunked_logprob.TOKEN_CHUNK_SIZE = LOGITS_TOKENS
    losses = roles.peft.register_forward_hook(guard.on_forward)
    try:
        bridge.switch_to(Role.POLICY)
        trainer.train()
    finally:
        losses.remove()
