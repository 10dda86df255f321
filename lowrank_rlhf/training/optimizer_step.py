"""Optimizer steps that are taken only if the loss and its gradient are finite."""

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from lowrank_rlhf.models.batch_limits import fatal_out_of_memory
from lowrank_rlhf.run.distributed import ProcessGroup


class NotFinite(ArithmeticError):
    """A loss, a gradient or a score is NaN or infinite; the message names it."""


def check_finite(name: str, value: float) -> None:
    """Raise `NotFinite` if the value is NaN or infinite."""
    if not math.isfinite(value):
        raise NotFinite(f"{name} is {value}")


def atomic_step() -> AbstractContextManager[None]:
    """Guard an optimizer's step. Raises `CannotFit` if memory runs out: some weights may have moved, so no retry."""
    advice = "Lower lora.rank or lora.last_layers; then rerun the command to resume from the last checkpoint"
    return fatal_out_of_memory("in the optimizer's step", advice)


def all_reduce_gradients(group: ProcessGroup, optimizer: torch.optim.Optimizer, *figures: Tensor) -> None:
    """Sum gradients and figures over all processes, in place, if several share the micro-batches.

    For the losses to add up, each must be divided by the number of tokens (or of groups) of all processes.
    """
    if group.world_size > 1:
        parameters = [parameter for params in optimizer.param_groups for parameter in params["params"]]
        for parameter in parameters:
            if parameter.grad is None:  # this process had no micro-batch
                parameter.grad = torch.zeros_like(parameter)
        group.all_reduce([*(parameter.grad for parameter in parameters), *figures])


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Clip the global norm of the gradients; return the norm before, a scalar on the device."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def finite_step(optimizer: torch.optim.Optimizer, model: str, loss: float, norm: float) -> None:
    """Take the optimizer's step, given the loss and the norm of the gradients; `model` is named in errors.

    Raises `NotFinite`, before any weight moves, if one of them is NaN or infinite.
    """
    check_finite(f"the {model}'s loss", loss)
    check_finite(f"the {model}'s gradient norm", norm)
    with atomic_step():
        optimizer.step()
