"""Weights of frozen linear layers, independent of their storage format."""

from typing import Any

import bitsandbytes as bnb
from torch import Tensor

from lowrank_rlhf.models.layers.int8 import Int8Linear


def dequantised(layer: Any) -> Tensor:
    """Return the weight (outputs, inputs) in the compute format; an unquantised layer returns its own tensor."""
    if isinstance(layer, bnb.nn.Linear4bit):
        packed: Any = layer.weight
        return bnb.functional.dequantize_4bit(packed, packed.quant_state)
    if isinstance(layer, Int8Linear):
        return layer.dequantised()
    weight: Tensor = layer.weight
    return weight.detach()
