"""A role's adapter folded into plain weights for as long as it only generates."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from lowrank_rlhf.models.roles import Role, Roles


@contextmanager
def merged(roles: Roles, role: Role) -> Iterator[None]:
    """Inside the block the model is the plain base with that role's adapter merged in, in the compute dtype.

    Each wrapped layer is replaced by a linear map with weight dequantised(W) + scale B A, which spares the
    dequantisation and the adapter's small products in every decoding step. Its numbers differ from the adapter's by
    rounding, so log-probabilities for training are always computed again by the adapter's own forward.
    """
    roles.check_free(role)
    model = roles.base.model
    layers: list[tuple[str, Any]] = [
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)
    ]
    try:
        with torch.no_grad():
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
        return linear(x, self.weight, self.bias)


def _merge(layer: Any, role: Role, dtype: torch.dtype) -> _MergedLinear:
    plain = layer.get_base_layer()
    delta = layer.scaling[role.value] * (layer.lora_B[role.value].weight @ layer.lora_A[role.value].weight)
    return _MergedLinear(_dequantised(plain).float().add_(delta).to(dtype), plain.bias)


def _dequantised(layer: Any) -> Tensor:
    if isinstance(layer, bnb.nn.Linear4bit):
        packed: Any = layer.weight
        return bnb.functional.dequantize_4bit(packed, packed.quant_state)
    weight: Tensor = layer.weight.clone()
    return weight
