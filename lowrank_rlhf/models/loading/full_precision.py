"""Forward of a model in 16 bits computed in float32, in which differences are faults and not rounding."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lowrank_rlhf.models.layers.weights import is_sharded
from lowrank_rlhf.run.memory_usage import free_memory_bytes

MOST_BYTES = 2 * 2**30
"""Largest size of all weights in float32: they are converted in every forward, and quantised layers need no copy."""
_PART = 8192
"""Rows of the vocabulary projection that are converted at once."""


def fits_in_float32(model: nn.Module, device: torch.device) -> bool:
    """Return True if the weights in 16 bits are few, and the device has twice the size of the copies at one time free.

    That is one decoder layer and what `in_float32` converts for the whole block; on a GPU, whose decoding steps are
    recorded, the whole model. Never for a sharded model, whose weights have no place of their own.
    """
    if is_sharded(model):
        return False
    rest = dict.fromkeys(_in_16_bits(model))
    size = at_once = _size(rest)
    if device.type != "cuda":
        layers = [list(_in_16_bits(layer)) for layer in _layers(model)]
        for tensor in (*chain(*layers), *(_of_vocabulary(model) if _has_plain_head(model) else ())):
            rest.pop(tensor, None)
        at_once = _size(rest) + max(map(_size, layers), default=0)
    return size <= MOST_BYTES and at_once <= free_memory_bytes(device) / 2


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Compute in float32 inside the block, on the same weights; afterwards the tensors are the same as before.

    On a CPU each decoder layer has float32 copies only while it runs, and the embeddings have none: a copy of
    Qwen2.5-0.5B would need 2 GB, more than its training.
    """
    with ExitStack() as undo:
        rest = dict.fromkeys(_in_16_bits(model))
        if not any(tensor.device.type == "cuda" for tensor in rest):
            for tensor in (*_per_layer(model, undo), *_per_row(model, undo)):
                rest.pop(tensor, None)
        _convert(rest, undo)
        for layer in model.modules():
            if isinstance(layer, bnb.nn.Linear4bit):
                undo.callback(setattr, layer, "compute_dtype", layer.compute_dtype)
                layer.compute_dtype = torch.float32
        yield


def _per_layer(model: nn.Module, undo: ExitStack) -> Iterator[Tensor]:
    """Convert the weights of each decoder layer while it runs; yield them."""
    for layer in _layers(model):
        own, restore = list(_in_16_bits(layer)), ExitStack()
        undo.callback(restore.close)

        def before(*_: object, own: list[Tensor] = own, restore: ExitStack = restore) -> None:
            _convert(own, restore)

        def after(*_: object, restore: ExitStack = restore) -> None:
            restore.close()

        undo.callback(layer.register_forward_pre_hook(before).remove)
        undo.callback(layer.register_forward_hook(after, always_call=True).remove)
        yield from own


def _per_row(model: Any, undo: ExitStack) -> Iterator[Tensor]:
    """Convert embeddings after their look-up, and the vocabulary projection in parts; yield the weights."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not _has_plain_head(model):
        return

    def project(x: Tensor) -> Tensor:
        found = torch.cat([linear(x, part.float()) for part in head.weight.split(_PART)], -1)
        return found if head.bias is None else found + head.bias.float()

    undo.callback(embeddings.register_forward_hook(lambda *given: given[-1].float()).remove)
    undo.callback(vars(head).pop, "forward")
    vars(head)["forward"] = project
    yield from _of_vocabulary(model)


def _has_plain_head(model: Any) -> bool:
    head = model.get_output_embeddings()
    return type(head) is nn.Linear and "forward" not in vars(head)


def _of_vocabulary(model: Any) -> list[Tensor]:
    """Return the weights of the embeddings and of a plain head."""
    return [model.get_input_embeddings().weight, *model.get_output_embeddings().parameters()]


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(4 * tensor.numel() for tensor in tensors)


def _convert(tensors: Iterable[Tensor], undo: ExitStack) -> None:
    """Give the tensors float32 copies of their data, and their own back at the end."""
    for tensor in tensors:
        undo.callback(setattr, tensor, "data", tensor.data)
        tensor.data = tensor.data.float()


def _layers(model: Any) -> list[nn.Module]:
    return list(model.get_decoder().layers)


def _in_16_bits(model: nn.Module) -> Iterator[Tensor]:
    """Yield parameters and buffers in bfloat16 or float16, each once."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in (torch.bfloat16, torch.float16):
            yield tensor
