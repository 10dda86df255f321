"""What the stages that train with TRL share: the loop's settings, whole steps, and no step with a NaN in it."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.optimizer_step import NotFinite, check_finite, whole_step
from lowrank_rlhf.training.trl_bridge import Loan


class WholeSteps(torch.optim.AdamW):
    """Out of memory inside a step ends the stage: TRL's loop would be tried again with weights that had moved."""

    def step(self, closure: Any = None) -> Any:
        """As AdamW's; raises `CannotFit` where memory runs out."""
        with whole_step():
            return super().step(closure)


class FiniteSteps(TrainerCallback):
    """Drops the gradients of a step in which something was not finite, so that the optimiser passes over it."""

    def __init__(self, roles: Roles) -> None:
        self.roles = roles
        self.losses: list[torch.Tensor] = []
        self.problem: str | None = None
        """What was not finite in the step that runs, or ran last."""

    def on_forward(self, _: Any, __: Any, output: Any) -> None:
        """A hook on the model: TRL's own log would hide a loss that is not finite, or keep it for ever."""
        if output.loss is not None:  # up to TRL 1.15 RLOO and GRPO read logits: then their gradient has to tell
            self.losses.append(output.loss.detach())

    def on_step_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - transformers' signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        self.problem = None
        self.losses.clear()

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,  # noqa: ARG002 - transformers' signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        parameters = self.roles.parameters(Role.POLICY)
        try:
            check_finite("the loss", float(sum(self.losses)))
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            check_finite("the gradient's norm", float(norm))
        except NotFinite as error:
            self.problem = self.problem or str(error)
        if self.problem is not None:
            for parameter in parameters:
                parameter.grad = None  # the optimiser passes over those that have none


def loop_settings(session: Session, stage: str, rows: int, rows_per_pass: int, steps: int) -> dict[str, Any]:
    """Settings of transformers' loop that are the same whatever it trains: `steps` of so many rows each.

    Rows come in the order given: a resumed run drops those already seen, and needs no state of a sampler.
    """
    return {
        "output_dir": str(session.work(stage) / "trl"),
        "per_device_train_batch_size": rows_per_pass,
        "gradient_accumulation_steps": rows // rows_per_pass,
        "max_steps": steps,
        "train_sampling_strategy": "sequential",
        "bf16": False,  # the base is in its number format already, and its layers cast the adapters
        "gradient_checkpointing": False,  # where wanted it is on already, without reentrance
        "use_cpu": session.base.device.type == "cpu",
        "logging_steps": 1,
        "logging_nan_inf_filter": True,  # a NaN would stay in every later step's loss; `FiniteSteps` sees it before
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": session.seed(stage) % 2**32,
    }


def schedule(optimizer: torch.optim.Optimizer, highest: float, share: Callable[[int], float]) -> LambdaLR:
    """`share(step)` of the highest rate, at each step from now on."""
    optimizer.zero_grad()  # what a step that was broken off had accumulated
    optimizer.param_groups[0].update(lr=highest, initial_lr=highest)  # what the schedule multiplies
    return LambdaLR(optimizer, share)


def train(roles: Roles, loan: Loan, trainer: Trainer, finite: FiniteSteps) -> None:
    """All of the trainer's steps, in the policy's turn."""
    trainer.remove_callback(PrinterCallback)
    losses = roles.peft.register_forward_hook(finite.on_forward)
    try:
        loan.give(Role.POLICY)
        trainer.train()
    finally:
        losses.remove()
