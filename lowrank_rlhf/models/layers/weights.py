"""The weight of a frozen linear layer, whatever it is stored in."""

from typing import Any

import bitsandbytes as bnb
from torch import Tensor

from lowrank_rlhf.models.layers.int8 import Int8Linear


def dequantised(layer: Any) -> Tensor:
    """(outputs, inputs), in the format that the layer computes in; of an unquantised layer the weight itself."""
    if isinstance(layer, bnb.nn.Linear4bit):
        packed: Any = layer.weight
        return bnb.functional.dequantize_4bit(packed, packed.quant_state)
    if isinstance(layer, Int8Linear):
        return layer.dequantised()
    weight: Tensor = layer.weight
    return weight.detach()
