"""Weights of frozen linear layers, independent of their storage format."""

from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor

from lowrank_rlhf.models.layers.gguf_linear import GgufLinear
from lowrank_rlhf.models.layers.int8 import Int8Linear


def dequantised(layer: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Return the weight (outputs, inputs) in `dtype`, by default the widest in which it is at hand.

    An unquantised layer in that format returns its own tensor.
    """
    if isinstance(layer, bnb.nn.Linear4bit):
        packed: Any = layer.weight
        return bnb.functional.dequantize_4bit(packed, packed.quant_state).to(dtype)
    if isinstance(layer, Int8Linear | GgufLinear):
        return layer.dequantised(dtype or torch.float32)
    weight: Tensor = layer.weight
    return weight.detach().to(dtype)
