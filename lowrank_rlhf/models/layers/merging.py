"""Merge a role's adapter into plain weights during generation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from lowrank_rlhf.models.batch_limits import fatal_out_of_memory
from lowrank_rlhf.models.layers.lora_linear import JointLinear
from lowrank_rlhf.models.layers.weights import dequantised
from lowrank_rlhf.models.roles import Role, Roles

_ADVICE = (
    "Set model.merged_rollouts: false: sampling is slower, but needs no copy. Finished stages depend on this setting; "
    "the next start lists those to redo"
)


@contextmanager
def merged(roles: Roles, role: Role) -> Iterator[None]:
    """Merge that role's adapter into the base inside the block, in the compute dtype.

    Each adapted or quantised layer uses a plain weight, dequantised(W) + scale B A, which saves the dequantisation and
    the adapter's small products in every decoding step. The results differ from the unmerged adapter's by rounding, so
    log-probabilities for training are always recomputed with the unmerged adapter.

    Raises `CannotFit`, with all layers as before, if memory runs out.
    """
    roles.check_free(role)
    slots = roles.slots
    roles.merged = role
    try:
        with fatal_out_of_memory("while the adapter was merged into a copy of the weights", _ADVICE), torch.no_grad():
            slots.switch(role.value, roles.parameters(role))
            slots.fill()
            for joint in slots.joints:
                joint.merged = _merged(joint, roles.base.compute_dtype)
        yield
    finally:
        roles.merged = None
        slots.empty()
        for joint in slots.joints:
            joint.merged = None


def _merged(joint: JointLinear, dtype: torch.dtype) -> Tensor:
    """Return W + s B A of the adapters in the slot, or W where it has none."""
    weight = joint.weight(dtype)
    if joint.slot is None:
        return weight
    if weight.data_ptr() == joint.layers[0].base.weight.data_ptr():  # unquantised: the base's own
        weight = weight.clone()
    spans, (a, *bs) = joint.slot
    for span, b in zip(spans, bs, strict=True):
        weight[span.columns].addmm_(b, a[span.ranks], alpha=span.scale)
    return weight


def merged_weight(layer: Any, role: Role) -> Tensor:
    """Return the float32 weight of a layer with the role's adapter, if any, merged: dequantised(W) + scale B A."""
    if not isinstance(layer, LoraLayer):
        return dequantised(layer)
    weight = dequantised(layer.get_base_layer())
    if role.value not in layer.lora_A:  # this role does not adapt the layer
        return weight
    a, b = (getattr(layer, part)[role.value].weight for part in ("lora_A", "lora_B"))
    return torch.addmm(weight.float(), b, a, alpha=layer.scaling[role.value])
