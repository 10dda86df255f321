"""Frozen weight and adapter of the acting role in one product, with one backward.

PEFT computes them separately and adds them: an output-sized product with the scaling, an output-sized sum, and under
autocast a cast of every adapter weight, in each of hundreds of layers. Here y = x W^T + s (x A^T) B^T is accumulated in
place, with an explicit backward. The weight is dequantised in the forward and again in the backward, and not saved.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from lowrank_rlhf.models.layers.weights import dequantised


class _LoraProduct(torch.autograd.Function):
    """(N, in) inputs, A (r, in), B (out, r) -> (N, out), in the inputs' number format; A's and B's may be wider."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, weight: Callable[[], Tensor], bias: Tensor | None, scale: float
    ) -> Tensor:
        a, b = a.to(x.dtype), b.to(x.dtype)
        inner = linear(x, a)  # (N, r)
        ctx.save_for_backward(x, a, b, inner)
        ctx.weight, ctx.scale = weight, scale
        return linear(x, weight(), bias).addmm_(inner, b.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None, None]:
        x, a, b, inner = ctx.saved_tensors
        outer = (grad @ b).mul_(ctx.scale)  # (N, out) -> (N, r)
        grad_x = (grad @ ctx.weight()).addmm_(outer, a) if ctx.needs_input_grad[0] else None
        return grad_x, (outer.t() @ x).float(), (grad.t() @ inner).mul_(ctx.scale).float(), None, None, None


class _FusedLinear(nn.Module):
    """Replacement of a PEFT layer while one role acts, with the same parameter names."""

    def __init__(self, layer: Any, adapter: str):
        super().__init__()
        self.base_layer, self.lora_A, self.lora_B = layer.base_layer, layer.lora_A, layer.lora_B
        self.adapter, self.scale = adapter, float(layer.scaling[adapter])

    def forward(self, x: Tensor) -> Tensor:
        rows, dtype = x.reshape(-1, x.shape[-1]), x.dtype  # `weight` is saved for the backward and must not keep x
        base, a, b = self.base_layer, self.lora_A[self.adapter].weight, self.lora_B[self.adapter].weight
        product = _LoraProduct.apply(rows, a, b, lambda: dequantised(base, dtype), base.bias, self.scale)
        return product.view(*x.shape[:-1], -1)


def _plain(layer: Any, adapter: str) -> bool:
    """Return True if the layer has that adapter and it is plain s B A of a linear layer: no DoRA, no bias."""
    if adapter not in layer.lora_A or not isinstance(layer.get_base_layer(), nn.Linear):
        return False
    return not layer.use_dora.get(adapter) and layer.lora_B[adapter].bias is None


@contextmanager
def fused(model: nn.Module, adapter: str) -> Iterator[None]:
    """Compute adapter and frozen weight of every adapted layer in one product inside the block."""
    layers: list[tuple[str, Any]] = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and _plain(layer, adapter)
    ]
    for name, layer in layers:
        model.set_submodule(name, _FusedLinear(layer, adapter))
    try:
        yield
    finally:
        for name, layer in layers:
            model.set_submodule(name, layer)
