"""Product with a frozen weight that is dequantised where it is used."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear


class FrozenProduct(torch.autograd.Function):
    """x W^T + b. The backward dequantises W again: saved copies would amount to the unquantised model."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Callable[[torch.dtype], Tensor], bias: Tensor | None) -> Tensor:
        """Return (..., in) inputs times the weight (out, in) in their number format, plus the bias."""
        ctx.weight = weight
        return linear(x, weight(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the inputs."""
        (gradient,) = gradients
        return gradient @ ctx.weight(gradient.dtype), None, None
