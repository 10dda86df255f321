"""Linear layers with one slot each for the adapter of the role that acts (decision 0026).

PEFT keeps the layers, their parameters and the names in files; `Slots` gives each of them another forward, once. PEFT's
own computes frozen weight and adapter separately and adds them: an output-sized product with the scaling and an
output-sized sum in each of hundreds of layers. Here y = x W^T + s (x A^T) B^T is accumulated in place, with an explicit
backward. The weight is dequantised in the forward and again in the backward, and not saved.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from lowrank_rlhf.models.layers.gguf_linear import GgufLinear
from lowrank_rlhf.models.layers.int8 import Int8Linear
from lowrank_rlhf.models.layers.weights import Weight, frozen_weight

FEW_ROWS = 96
"""Number of rows up to which W x^T is faster than x W^T in float32: 0.69 against 1.15 ms at 32 x 576 x 1536 (MKL, two
AVX2 cores), 0.09 against 0.31 ms at 4 rows (two Zen 4 cores). In bfloat16 it is slower: 0.13 against 0.07 ms there."""


class _LoraProduct(torch.autograd.Function):
    """(N, in) inputs, A (r, in), B (out, r) -> (N, out), in the inputs' number format."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, weight: Weight, bias: Tensor | None, scale: float) -> Tensor:
        a, b = a.to(x.dtype), b.to(x.dtype)  # the same tensors, but for a model that mixes number formats
        inner = linear(x, a)  # (N, r)
        ctx.save_for_backward(x, a, b, inner)
        ctx.weight, ctx.scale = weight, scale
        return linear(x, weight(x.dtype), bias).addmm_(inner, b.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None, None]:
        x, a, b, inner = ctx.saved_tensors
        # With beta=0 the first argument is ignored: a product and its scaling in one operation.
        outer = torch.addmm(b[:1], grad, b, beta=0, alpha=ctx.scale)  # (N, out) -> (N, r)
        grad_x = (grad @ ctx.weight(grad.dtype)).addmm_(outer, a) if ctx.needs_input_grad[0] else None
        grad_b = torch.addmm(b, grad.t(), inner, beta=0, alpha=ctx.scale)
        return grad_x, outer.t() @ x, grad_b, None, None, None


class _Rounded(torch.autograd.Function):
    """Adapter weights -> the same in another number format, as parts of one tensor.

    Two operations for all of them in the forward, and two in the backward, instead of one for each of hundreds.
    """

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = weights[0].dtype
        return _parts(torch.cat([weight.reshape(-1) for weight in weights]).to(dtype), weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        whole = torch.cat([gradient.reshape(-1) for gradient in gradients])
        return None, *_parts(whole.to(ctx.dtype), gradients)


def _parts(whole: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the parts of a vector as tensors of those shapes."""
    sizes = [tensor.numel() for tensor in like]
    return tuple(part.view(tensor.shape) for part, tensor in zip(whole.split(sizes), like, strict=True))


class SlotLinear:
    """Forward of one linear layer: its frozen weight, with the adapter in its slot or as merged."""

    def __init__(self, layer: Any, slots: "Slots") -> None:
        self.layer, self._slots = layer, slots
        base: Any = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
        self.base: Any = base
        if isinstance(getattr(base.forward, "__self__", None), SlotLinear):
            del base.forward  # of the time before PEFT wrapped it
        self.plain: Callable[[Tensor], Tensor] = base.forward
        self.weight, self.bias = frozen_weight(base), base.bias
        self.slot: tuple[Tensor, Tensor, float] | None = None
        """A (r, in), B (out, r) and scale of the acting role's adapter, where it has one here."""
        self.merged: Tensor | None = None
        """Weight to use instead of everything else, (out, in)."""
        layer.forward = self.forward

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, (..., in) -> (..., out)."""
        if self.merged is not None:
            return self._by_merged(x, self.merged)
        if self._slots.stale:
            self._slots.fill()
        if self.slot is None:
            return self.plain(x)
        a, b, scale = self.slot
        rows = x.reshape(-1, x.shape[-1])
        product: Tensor = _LoraProduct.apply(rows, a, b, self.weight, self.bias, scale)
        return product.view(*x.shape[:-1], -1)

    def _by_merged(self, x: Tensor, weight: Tensor) -> Tensor:
        many = x.numel() // x.shape[-1] > FEW_ROWS
        if many or self.bias is not None or weight.dtype != torch.float32:
            return linear(x, weight, self.bias)
        product = (weight @ x.flatten(0, -2).t()).t().contiguous()  # DeepSeek V2 views its output as complex
        return product.unflatten(0, x.shape[:-1])


class _Adapter(NamedTuple):
    layers: list[SlotLinear]
    weights: list[Tensor]
    """A and B of each layer in turn."""
    scales: list[float]


class Slots:
    """Slots of all linear layers with an adapter or a quantised weight.

    A switch of role only notes the role: the slots are filled before its forward. They point to its float32 parameters
    or, in another number format, to parts of one rounded copy.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype
        self._adapters: dict[str, _Adapter] = {}
        self._acting: _Adapter | None = None
        self.layers: list[SlotLinear] = []
        self.stale = False
        """True from a switch to the first forward."""

    def install(self) -> None:
        """Give the layers their forward; call it after PEFT has added or removed an adapter.

        Raises `ValueError` for an adapter that is not plain s B A of linear layers.
        """
        found = [layer for name, layer in self._model.named_modules() if _has_slot(name, layer)]
        known = {id(layer.layer): layer for layer in self.layers}
        self.layers = [known.get(id(layer)) or SlotLinear(layer, self) for layer in found]
        self._adapters.clear()

    def switch(self, adapter: str, parameters: Sequence[Tensor]) -> None:
        """Fill the slots of these parameters' layers with that adapter before the next forward."""
        if adapter not in self._adapters:
            self._adapters[adapter] = self._adapter(adapter, {id(parameter) for parameter in parameters})
        self._acting, self.stale = self._adapters[adapter], True

    def fill(self) -> None:
        """Fill the slots with the present weights of the adapter; call it again after they have changed."""
        self.stale = False
        if self._acting is None:
            return
        layers, weights, scales = self._acting
        parts: Sequence[Tensor] = weights
        if weights[0].dtype != self._dtype:
            parts = _Rounded.apply(self._dtype, *weights)
        for layer, a, b, scale in zip(layers, parts[::2], parts[1::2], scales, strict=True):
            layer.slot = (a, b, scale)

    def empty(self) -> None:
        """Empty the slots."""
        for layer in self._acting.layers if self._acting else ():
            layer.slot = None
        self._acting, self.stale = None, False

    def _adapter(self, name: str, parameters: set[int]) -> _Adapter:
        found = _Adapter([], [], [])
        for layer in self.layers:
            if name in getattr(layer.layer, "lora_A", ()):
                a, b = (getattr(layer.layer, part)[name].weight for part in ("lora_A", "lora_B"))
                if id(a) in parameters:
                    found.layers.append(layer)
                    found.weights.extend((a, b))
                    found.scales.append(float(layer.layer.scaling[name]))
        return found


def outside_adapters(model: nn.Module) -> list[nn.Module]:
    """Return the modules that are not a layer with an adapter or a part of one."""
    adapted = (layer for layer in model.modules() if isinstance(layer, LoraLayer))
    inside = {id(part) for layer in adapted for part in layer.modules()}
    return [module for module in model.modules() if id(module) not in inside]


def _has_slot(name: str, layer: nn.Module) -> bool:
    if not isinstance(layer, LoraLayer):
        return isinstance(layer, bnb.nn.Linear4bit | Int8Linear | GgufLinear) and not name.endswith(".base_layer")
    biased = any(getattr(matrix, "bias", None) is not None for matrix in layer.lora_B.values())
    if biased or any(layer.use_dora.values()) or not isinstance(layer.get_base_layer(), nn.Linear):
        raise ValueError(f"{name}: only plain LoRA on linear layers is supported, without DoRA and biases")
    return True
