"""Linear layers with one slot for the adapters of the role that acts (decisions 0026 and 0029).

PEFT keeps the layers, their parameters and the names in files; `Slots` gives each of them another forward, once. PEFT's
own adds a scaled output-sized product to the frozen layer's. Here y = x W^T + s (x A^T) B^T is summed in place, and
the weight is dequantised again in the backward instead of saved. Layers that read the same input have one product.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, islice
from typing import Any, NamedTuple

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from lowrank_rlhf.models.layers.gguf_linear import GgufLinear
from lowrank_rlhf.models.layers.int8 import Int8Linear
from lowrank_rlhf.models.layers.joint_weights import Weight, joint_bias, joint_weight

FEW_ROWS = 96
"""Number of rows up to which W x^T is faster than x W^T in float32: 0.69 against 1.15 ms at 32 x 576 x 1536 (MKL, two
AVX2 cores), 0.09 against 0.31 ms at 4 rows (two Zen 4 cores). In bfloat16 it is slower: 0.13 against 0.07 ms there."""


class _Span(NamedTuple):
    """Adapter of one layer of several: s B A."""

    columns: slice
    """Its outputs among those of all layers."""
    ranks: slice
    """Its rows among those of the stacked A."""
    scale: float


class _LoraProduct(torch.autograd.Function):
    """(N, in) inputs, A (R, in) of all layers' adapters, B (out, r) of each -> (N, out) of each layer.

    In the inputs' number format. `rest` is the weight, the bias, the numbers of outputs, of which the weight has the
    sum, the spans, A, and each B. They have no names, because `torch.compile` (PyTorch 2.13) calls a forward without
    `ctx` where no gradient is needed and it gets one argument more than it names.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        weight, bias, sizes, spans, a, *bs = rest
        a, bs = a.to(x.dtype), [b.to(x.dtype) for b in bs]  # the same, but for a model that mixes number formats
        inner = linear(x, a)  # (N, R)
        out = linear(x, weight(x.dtype), bias)
        for b, span in zip(bs, spans, strict=True):
            out[:, span.columns].addmm_(inner[:, span.ranks], b.t(), alpha=span.scale)
        ctx.save_for_backward(x, inner, a, *bs)
        ctx.weight, ctx.spans = weight, spans
        return (out,) if len(sizes) == 1 else out.split(sizes, 1)  # only a whole output may change in place

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, a, *bs = ctx.saved_tensors
        grad = _joined(gradients)  # (N, outputs of all)
        spans = zip(bs, ctx.spans, strict=True)
        parts = [(grad[:, span.columns], inner[:, span.ranks], b, span.scale) for b, span in spans]
        # With beta=0 the first argument is ignored: a product and its scaling in one operation.
        outer = _joined([torch.addmm(b[:1], g, b, beta=0, alpha=scale) for g, _, b, scale in parts])  # (N, R)
        grad_x = (grad @ ctx.weight(grad.dtype)).addmm_(outer, a) if ctx.needs_input_grad[0] else None
        grad_bs = [torch.addmm(b, g.t(), part, beta=0, alpha=scale) for g, part, b, scale in parts]
        return grad_x, None, None, None, None, outer.t() @ x, *grad_bs


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([*parts], 1)


class _Flat(torch.autograd.Function):
    """Adapter weights -> parts of one tensor in another number format, of these shapes, each of one or more weights.

    Two operations for all of them in the forward, and two in the backward, instead of one for each of hundreds.
    """

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, shapes: list[torch.Size], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype, ctx.shapes = weights[0].dtype, [weight.shape for weight in weights]
        return _parts(torch.cat([weight.reshape(-1) for weight in weights]).to(dtype), shapes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        whole = torch.cat([gradient.reshape(-1) for gradient in gradients])
        return None, None, *_parts(whole.to(ctx.dtype), ctx.shapes)


def _parts(whole: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    """Return the parts of a vector as tensors of those shapes."""
    parts = whole.split([shape.numel() for shape in shapes])
    return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))


class SlotLinear:
    """Forward of one linear layer: its part of a joint product, or the base's own where no adapter acts."""

    def __init__(self, layer: Any, slots: "Slots") -> None:
        self.layer, self._slots = layer, slots
        base: Any = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
        self.base: Any = base
        earlier = getattr(base.forward, "__self__", None)
        if isinstance(earlier, SlotLinear):  # of the time before PEFT wrapped it
            base.forward = earlier.plain
        self.plain: Callable[[Tensor], Tensor] = base.forward
        self.joint: JointLinear
        self.index: int
        """Index among the layers of the joint product."""
        layer.forward = self.forward

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, (..., in) -> (..., out)."""
        if self.joint.merged is None:
            if self._slots.stale:
                self._slots.fill()
            if self.joint.slot is None:
                return self.plain(x)
        return self.joint.output(self.index, x)


class JointLinear:
    """Product of one or more layers that read the same input, with the adapters in its slot or a merged weight.

    The first layer that is called computes the outputs of all. The others take theirs if they are called with the very
    same tensor, and compute all again for any other.
    """

    def __init__(self, layers: Sequence[SlotLinear], weight: Weight) -> None:
        bases = [layer.base for layer in layers]
        self.layers, self.weight, self.bias = layers, weight, joint_bias(bases)
        self.sizes = [base.out_features for base in bases]
        self.slot: tuple[list[_Span], Sequence[Tensor]] | None = None
        """Spans of the acting role's adapters, the stacked A (R, in), and each B (out, r); None where it has none."""
        self.merged: Tensor | None = None
        """Weight to use instead of everything else, (outputs of all, in)."""
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}
        for index, layer in enumerate(layers):
            layer.joint, layer.index = self, index

    def output(self, index: int, x: Tensor) -> Tensor:
        """Return the output of one layer, (..., in) -> (..., out)."""
        if self._input is not x or index not in self._outputs:
            self._input, self._outputs = x, dict(enumerate(self._products(x)))
        found = self._outputs.pop(index)
        if not self._outputs:
            self._input = None
        return found

    def forget(self) -> None:
        """Drop outputs that no layer has taken."""
        self._input, self._outputs = None, {}

    def columns(self) -> list[slice]:
        """Return where each layer's outputs are among those of all."""
        ends = list(accumulate(self.sizes))
        return [slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]

    def _products(self, x: Tensor) -> Sequence[Tensor]:
        if self.merged is not None:
            return self._by_merged(x, self.merged).split(self.sizes, -1)
        spans, weights = self.slot or ([], [])
        rows = x.reshape(-1, x.shape[-1])
        products = _LoraProduct.apply(rows, self.weight, self.bias, self.sizes, spans, *weights)
        return [product.view(*x.shape[:-1], -1) for product in products]

    def _by_merged(self, x: Tensor, weight: Tensor) -> Tensor:
        many = x.numel() // x.shape[-1] > FEW_ROWS
        if many or self.bias is not None or weight.dtype != torch.float32:
            return linear(x, weight, self.bias)
        product = (weight @ x.flatten(0, -2).t()).t().contiguous()  # DeepSeek V2 views its output as complex
        return product.unflatten(0, x.shape[:-1])


class _Adapter(NamedTuple):
    joints: list[JointLinear]
    spans: list[list[_Span]]
    weights: list[Tensor]
    """A of each layer of a joint product, then B of each, in turn."""
    shapes: list[torch.Size]
    """Shapes of the stacked A and of each B, in turn."""


class Slots:
    """Slots of all linear layers with an adapter or a quantised weight.

    A switch of role only notes the role: the slots are filled before its forward, with parts of one copy of its
    adapter's weights in the model's number format.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, siblings: Sequence[Sequence[nn.Module]] = ()) -> None:
        """`siblings` are the frozen layers that read the same input, as `layers_by_input` finds them."""
        self._model, self._dtype, self._siblings = model, dtype, siblings
        self._adapters: dict[str, _Adapter] = {}
        self._acting: _Adapter | None = None
        self.layers: list[SlotLinear] = []
        self.joints: list[JointLinear] = []
        self.stale = False
        """True from a switch to the first forward."""

    def install(self) -> None:
        """Give the layers their forward; call it after PEFT has added or removed an adapter.

        Raises `ValueError` for an adapter that is not plain s B A of linear layers.
        """
        found = [layer for name, layer in self._model.named_modules() if _has_slot(name, layer)]
        known = {id(layer.layer): layer for layer in self.layers}
        self.layers = [known.get(id(layer)) or SlotLinear(layer, self) for layer in found]
        self._join()
        self._adapters.clear()

    def _join(self) -> None:
        by_base = {id(layer.base): layer for layer in self.layers}
        groups = [[by_base[id(base)] for base in bases if id(base) in by_base] for bases in self._siblings]
        known = {tuple(map(id, joint.layers)): joint for joint in self.joints}
        self.joints = []
        grouped = {id(layer) for group in groups for layer in group}
        for group in [*filter(None, groups), *([layer] for layer in self.layers if id(layer) not in grouped)]:
            joint = known.get(tuple(map(id, group)))
            self.joints.extend([joint] if joint else _joints(group))

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
        joints, spans, weights, shapes = self._acting
        parts = iter(_Flat.apply(self._dtype, shapes, *weights))
        for joint, places in zip(joints, spans, strict=True):
            joint.slot = (places, [*islice(parts, 1 + len(places))])

    def empty(self) -> None:
        """Empty the slots."""
        self.forget()
        for joint in self.joints:
            joint.slot = None
        self._acting, self.stale = None, False

    def forget(self) -> None:
        """Drop outputs that no layer has taken: of a forward that failed between two layers of a joint product."""
        for joint in self.joints:
            joint.forget()

    def _adapter(self, name: str, parameters: set[int]) -> _Adapter:
        found = _Adapter([], [], [], [])
        for joint in self.joints:
            matrices: list[tuple[Tensor, Tensor]] = []
            spans: list[_Span] = []
            for layer, columns in zip(joint.layers, joint.columns(), strict=True):
                if name in getattr(layer.layer, "lora_A", ()):
                    a, b = (getattr(layer.layer, part)[name].weight for part in ("lora_A", "lora_B"))
                    if id(a) in parameters:
                        start = sum(len(other) for other, _ in matrices)
                        spans.append(_Span(columns, slice(start, start + len(a)), float(layer.layer.scaling[name])))
                        matrices.append((a, b))
            if matrices:
                every_a, every_b = zip(*matrices, strict=True)
                found.joints.append(joint)
                found.spans.append(spans)
                found.weights.extend((*every_a, *every_b))
                rows = sum(len(a) for a in every_a)
                found.shapes.extend((torch.Size((rows, every_a[0].shape[1])), *(b.shape for b in every_b)))
        return found


def _joints(layers: Sequence[SlotLinear]) -> list[JointLinear]:
    """Return one product for all, or one for each if their weights cannot be stored as one."""
    weight = joint_weight([layer.base for layer in layers])
    if weight is not None:
        return [JointLinear(layers, weight)]
    return [joint for layer in layers for joint in _joints([layer])]


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
