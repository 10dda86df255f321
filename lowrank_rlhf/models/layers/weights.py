"""Weights of frozen linear layers, independent of their storage format."""

from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn

from lowrank_rlhf.models.layers.gguf_linear import GgufLinear
from lowrank_rlhf.models.layers.int8 import Int8Linear

_GATHER = "gather"


def gathered(layer: nn.Module) -> None:
    """Make the weights of a layer readable until those of another decoder layer are read, if processes share them."""
    if gather := vars(layer).get(_GATHER):
        gather()


def is_sharded(model: nn.Module) -> bool:
    """Return True if processes share the frozen weights of this model or layer, each with a part: `ShardedLayers`."""
    return any(_GATHER in vars(module) for module in model.modules())


def dequantised(layer: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Return the weight (outputs, inputs) in `dtype`, by default the widest in which it is at hand.

    An unquantised layer in that format returns its own tensor; that of a sharded one is valid until another is read.
    """
    gathered(layer)
    if isinstance(layer, bnb.nn.Linear4bit):
        packed: Any = layer.weight
        return bnb.functional.dequantize_4bit(packed, packed.quant_state).to(dtype)
    if isinstance(layer, Int8Linear | GgufLinear):
        return layer.dequantised(dtype or torch.float32)
    weight: Tensor = layer.weight
    return weight.detach().to(dtype)
