"""One step of an optimiser, made only where the loss and its gradient are finite."""

import math

import torch


class NotFinite(ArithmeticError):
    """A loss, a gradient or a score is NaN or infinite; the message says which."""


def check_finite(what: str, value: float) -> None:
    """Raises `NotFinite` where the value is NaN or infinite."""
    if not math.isfinite(value):
        raise NotFinite(f"{what} is {value}")


def clipped_step(optimizer: torch.optim.Optimizer, whose: str, loss: float, max_norm: float) -> float:
    """Clip the gradients of all its parameters together to that norm, step, and return the norm before clipping.

    Raises `NotFinite`, with every weight as it was, where the loss or the norm is NaN or infinite.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
    check_finite(f"the {whose}'s loss", loss)
    check_finite(f"the {whose}'s gradient norm", norm)
    optimizer.step()
    return norm
