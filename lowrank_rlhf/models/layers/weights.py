"""Weights of frozen linear layers, independent of their storage format."""

from collections.abc import Callable
from functools import partial
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor

from lowrank_rlhf.models.layers.gguf_linear import GgufLinear
from lowrank_rlhf.models.layers.int8 import Int8Linear

Weight = Callable[[torch.dtype], Tensor]
"""Frozen weight of a layer, (outputs, inputs), as a function of the number format."""


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


def frozen_weight(layer: Any) -> Weight:
    """Return the weight as a function to call often: one operation for NF4, whose scales are dequantised here.

    They are 4 bytes for 64 weights, beside the quantised ones that the base keeps.
    """
    if not isinstance(layer, bnb.nn.Linear4bit):
        return partial(dequantised, layer)
    packed: Any = layer.weight
    return partial(_from_4_bits, packed, _with_plain_scales(packed.quant_state))


def _from_4_bits(packed: Tensor, state: bnb.functional.QuantState, dtype: torch.dtype) -> Tensor:
    return bnb.functional.dequantize_4bit(packed, state).to(dtype)


def _with_plain_scales(state: Any) -> Any:
    if not state.nested:
        return state
    scales = (bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset).float()
    return bnb.functional.QuantState(scales, state.shape, state.code, state.blocksize, state.quant_type, state.dtype)
