"""Temporary float32 copies of a model's weights, in which differences are faults and not rounding."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn

from lowrank_rlhf.run.memory_usage import free_memory_bytes

MOST_BYTES = 2 * 2**30
"""Largest copy: it takes a moment only, and quantised layers need none."""


def fits_in_float32(model: nn.Module, device: torch.device) -> bool:
    """Return True if float32 copies of the weights in 16 bits are small, and the device has twice their size free."""
    size = sum(4 * tensor.numel() for tensor in _in_16_bits(model))
    return size <= min(MOST_BYTES, free_memory_bytes(device) / 2)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Compute in float32 inside the block, on the same weights; afterwards the tensors are the same as before."""
    tensors = list(_in_16_bits(model))
    before = [tensor.data for tensor in tensors]
    layers: list[Any] = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    formats = [layer.compute_dtype for layer in layers]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.float()
        for layer in layers:
            layer.compute_dtype = torch.float32
        yield
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data
        for layer, dtype in zip(layers, formats, strict=True):
            layer.compute_dtype = dtype


def _in_16_bits(model: nn.Module) -> Iterator[Tensor]:
    """Yield parameters and buffers in bfloat16 or float16, each once."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in (torch.bfloat16, torch.float16):
            yield tensor
