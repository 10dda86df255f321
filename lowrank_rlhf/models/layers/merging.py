"""Merge a role's adapter into plain weights during generation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from lowrank_rlhf.models.batch_limits import fatal_out_of_memory
from lowrank_rlhf.models.layers.gguf_linear import GgufLinear
from lowrank_rlhf.models.layers.int8 import Int8Linear
from lowrank_rlhf.models.layers.weights import dequantised
from lowrank_rlhf.models.roles import Role, Roles

FEW_ROWS = 96
"""Number of rows up to which W x^T is faster than x W^T in float32: 0.69 against 1.15 ms at 32 x 576 x 1536 (MKL, two
AVX2 cores), 0.09 against 0.31 ms at 4 rows (two Zen 4 cores). In bfloat16 it is slower: 0.13 against 0.07 ms there."""

_ADVICE = (
    "Set model.merged_rollouts: false: sampling is slower, but needs no copy. Finished stages depend on this setting; "
    "the next start lists those to redo"
)


@contextmanager
def merged(roles: Roles, role: Role) -> Iterator[None]:
    """Merge that role's adapter into the base inside the block, in the compute dtype.

    Each adapted or quantised layer is replaced by a linear layer with weight dequantised(W) + scale B A, which saves
    the dequantisation and the adapter's small products in every decoding step. The results differ from the unmerged
    adapter's by rounding, so log-probabilities for training are always recomputed with the unmerged adapter.

    Raises `CannotFit`, with all original layers restored, if memory runs out during the replacement.
    """
    roles.check_free(role)
    model = roles.base.model
    layers: list[tuple[str, Any]] = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer | bnb.nn.Linear4bit | Int8Linear | GgufLinear)
        and not name.endswith(".base_layer")
    ]
    roles.merged = role
    try:
        with fatal_out_of_memory("while the adapter was merged into a copy of the weights", _ADVICE), torch.no_grad():
            for name, layer in layers:
                model.set_submodule(name, _merge(layer, role, roles.base.compute_dtype))
        yield
    finally:
        roles.merged = None
        for name, layer in layers:
            model.set_submodule(name, layer)


class _MergedLinear(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        many = x.numel() // x.shape[-1] > FEW_ROWS
        if many or self.bias is not None or self.weight.dtype != torch.float32:
            return linear(x, self.weight, self.bias)
        return (self.weight @ x.flatten(0, -2).t()).t().unflatten(0, x.shape[:-1])


def merged_weight(layer: Any, role: Role) -> Tensor:
    """Return the weight of a linear layer with the role's adapter, if any, merged: dequantised(W) + scale B A."""
    if not isinstance(layer, LoraLayer):
        return dequantised(layer)
    weight = dequantised(layer.get_base_layer())
    if role.value not in layer.lora_A:  # this role does not adapt the layer
        return weight
    a, b = (getattr(layer, part)[role.value].weight for part in ("lora_A", "lora_B"))
    return torch.addmm(weight.float(), b, a, alpha=layer.scaling[role.value])


def _merge(layer: Any, role: Role, dtype: torch.dtype) -> _MergedLinear:
    plain: Any = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
    return _MergedLinear(merged_weight(layer, role).to(dtype), plain.bias)
