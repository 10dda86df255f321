"""Frozen weights of linear layers that read the same input, stored as one: one dequantisation and product for all."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, groupby
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn

from lowrank_rlhf.models.layers.weights import dequantised, gathered, is_sharded

Weight = Callable[[torch.dtype], Tensor]
"""Frozen weight of one or more layers, (outputs of all, inputs), as a function of the number format."""


def layers_by_input(model: nn.Module, forward: Callable[[], object]) -> list[list[nn.Module]]:
    """Return the linear layers in the order in which `forward` calls them, those that read the same tensor together.

    Left out are layers called twice, and layers whose output is changed in place: the outputs of siblings are parts of
    one tensor, and autograd refuses that.
    """
    calls: list[tuple[nn.Module, Tensor, int]] = []
    outputs: list[tuple[nn.Module, Tensor, int]] = []

    def note(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        calls.extend((layer, x, x._version) for x in given)

    def note_output(layer: nn.Module, _given: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append((layer, output, output._version))

    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_pre_hook(note) for layer in linear]
    hooks += [layer.register_forward_hook(note_output) for layer in linear]
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    times = Counter(id(layer) for layer, _, _ in calls)
    times.update(id(layer) for layer, output, version in outputs if output._version != version)
    groups = groupby((call for call in calls if times[id(call[0])] == 1), lambda call: (id(call[1]), call[2]))
    return [[layer for layer, _, _ in group] for _, group in groups]


def joint_weight(layers: Sequence[Any]) -> Weight | None:
    """Return the weight of all layers as a function to call often, or None where they are not stored as one.

    That is for other formats, for unquantised weights on a CPU, and for sharded ones that do not follow each other.

    Their own weights become parts of it: nothing is stored twice, except the scales of NF4, which are dequantised here,
    4 bytes for 64 weights beside the base's own.
    """
    gathered(layers[0])
    if len(layers) > 1 and (
        _in_a_file(layers[0]) or len({_format(layer) for layer in layers}) > 1 or _sharded_apart(layers)
    ):
        return None
    if not isinstance(layers[0], bnb.nn.Linear4bit):
        return partial(dequantised, _joint_layer(layers) if len(layers) > 1 else layers[0])
    states = [layer.weight.quant_state for layer in layers]
    if any(state.shape.numel() % state.blocksize for state in states[:-1]):
        return None
    state = plain_state(states[0])
    state.absmax = _stored_as_one([plain_state(state).absmax for state in states])
    state.shape = torch.Size((sum(state.shape[0] for state in states), states[0].shape[1]))
    return partial(_from_4_bits, layers[0], _stored_as_one([layer.weight for layer in layers]), state)


def joint_bias(layers: Sequence[Any]) -> Tensor | None:
    """Return the biases of all layers, (outputs of all,), with zeros for a layer that has none, or None."""
    biases = [layer.bias for layer in layers]
    some = next((bias for bias in biases if bias is not None), None)
    if some is None or len(layers) == 1:
        return some
    sizes = [layer.out_features for layer in layers]
    return torch.cat([some.new_zeros(size) if bias is None else bias for bias, size in zip(biases, sizes, strict=True)])


def _in_a_file(layer: Any) -> bool:
    """Return True for weights that may be pages of the model's file, which a copy would not free."""
    return type(layer) is nn.Linear and layer.weight.device.type == "cpu"


def _format(layer: Any) -> tuple[object, ...]:
    """Return what must be equal in layers whose weights are stored as one."""
    tensors = [(name, tensor.shape[1:], tensor.dtype) for name, tensor in _weights(layer)]
    state = getattr(layer.weight, "quant_state", None)
    quantised = (state.blocksize, state.quant_type, state.dtype, state.shape[1]) if state else ()
    return type(layer), layer.in_features, getattr(layer, "kind", None), *tensors, *quantised


def frozen_tensors(layer: Any) -> dict[str, Tensor]:
    """Return the tensors of a layer's weight by their names; its bias is not one of them."""
    state = getattr(layer.weight, "quant_state", None)
    return dict(_weights(layer)) | ({"absmax": state.absmax} if state else {})


def _weights(layer: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, tensor) for name, tensor in layer.named_parameters(recurse=False) if name != "bias")


def _joint_layer(layers: Sequence[Any]) -> Any:
    """Return a layer with the outputs of all, whose tensors all have a row for each output (or more, in blocks)."""
    joint = copy.copy(layers[0])
    vars(joint)["_parameters"] = {}  # instead of those of the first layer, which the copy shares
    joint.out_features = sum(layer.out_features for layer in layers)
    for name, _ in _weights(layers[0]):
        whole = _stored_as_one([getattr(layer, name) for layer in layers])
        joint.register_parameter(name, nn.Parameter(whole, requires_grad=False))
    return joint


def _stored_as_one(tensors: Sequence[Tensor]) -> Tensor:
    """Return the rows of all tensors as one, and let these point to their parts, as they may already."""
    if len(tensors) == 1:
        return tensors[0]
    if (found := _adjacent(tensors)) is not None:
        return found
    whole = torch.cat([tensor.data for tensor in tensors])
    for tensor, part in zip(tensors, whole.split([len(tensor) for tensor in tensors]), strict=True):
        tensor.data = part
    return whole


def _adjacent(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return the rows of all tensors as one if they follow each other in memory, else None."""
    first, ends = tensors[0].data, accumulate(tensor.numel() for tensor in tensors)
    starts = [tensor.storage_offset() - first.storage_offset() for tensor in tensors]
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    if len(storages) > 1 or starts != [0, *ends][:-1] or not all(tensor.is_contiguous() for tensor in tensors):
        return None
    return first.as_strided((sum(map(len, tensors)), *first.shape[1:]), first.stride())


def _sharded_apart(layers: Sequence[Any]) -> bool:
    """Return True for sharded layers whose weights cannot be read as one: they lie where they are gathered."""
    if not is_sharded(layers[0]):
        return False
    tensors = zip(*(frozen_tensors(layer).values() for layer in layers), strict=True)
    return any(_adjacent(alike) is None for alike in tensors)


def _from_4_bits(layer: Any, packed: Tensor, state: bnb.functional.QuantState, dtype: torch.dtype) -> Tensor:
    gathered(layer)
    return bnb.functional.dequantize_4bit(packed, state).to(dtype)


def plain_state(state: Any) -> Any:
    """Return the state of an NF4 weight with its scales in float32, themselves if they are."""
    scales = state.absmax
    if state.nested:
        scales = (bnb.functional.dequantize_blockwise(scales, state.state2) + state.offset).float()
    return bnb.functional.QuantState(scales, state.shape, state.code, state.blocksize, state.quant_type, state.dtype)
