"""One step of an optimiser, made only where the loss and its gradient are finite."""

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from lowrank_rlhf.models.batch_limits import nothing_to_halve
from lowrank_rlhf.run.distributed import ProcessGroup


class NotFinite(ArithmeticError):
    """A loss, a gradient or a score is NaN or infinite; the message says which."""


def check_finite(what: str, value: float) -> None:
    """Raises `NotFinite` where the value is NaN or infinite."""
    if not math.isfinite(value):
        raise NotFinite(f"{what} is {value}")


def whole_step() -> AbstractContextManager[None]:
    """Around an optimiser's step, which cannot be tried again: out of memory in it some weights may have moved.

    Raises `CannotFit` then.
    """
    helps = "Lower lora.rank or lora.last_layers; the same command goes on from the last checkpoint"
    return nothing_to_halve("in the optimiser's step", helps)


def all_reduce_gradients(group: ProcessGroup, optimizer: torch.optim.Optimizer, *figures: Tensor) -> None:
    """Where several processes share the micro-batches: gradients and figures become their sums over all of them.

    For the losses of all parts to add up, each must be divided by the number of tokens (or of groups) of all together.
    """
    if group.world_size > 1:
        parameters = [parameter for params in optimizer.param_groups for parameter in params["params"]]
        for parameter in parameters:
            if parameter.grad is None:  # this process had no part to compute
                parameter.grad = torch.zeros_like(parameter)
        group.all_reduce([*(parameter.grad for parameter in parameters), *figures])


def clipped_step(optimizer: torch.optim.Optimizer, whose: str, loss: float, max_norm: float) -> float:
    """Clip the gradients of all its parameters together to that norm, step, and return the norm before clipping.

    Raises `NotFinite`, with every weight as it was, where the loss or the norm is NaN or infinite.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
    check_finite(f"the {whose}'s loss", loss)
    check_finite(f"the {whose}'s gradient norm", norm)
    with whole_step():
        optimizer.step()
    return norm
