"""Linear layers with a frozen 8-bit weight, multiplied at full precision (decision 0012)."""

from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn

from lowrank_rlhf.models.layers.frozen_product import FrozenProduct


class Int8Linear(nn.Linear):
    """Frozen linear layer with the int8 weight of bitsandbytes and one scale per output.

    The forward of bitsandbytes quantises the activations too, with outlier columns chosen from the whole batch: a row's
    result then depends on the other rows and the padding, and its gradient is not that of the computed function.
    """

    def __init__(self, loaded: bnb.nn.Linear8bitLt) -> None:
        super().__init__(loaded.in_features, loaded.out_features, bias=False, device="meta")
        packed: Any = loaded.weight
        self.weight = nn.Parameter(packed.data, requires_grad=False)
        self.scale = nn.Parameter(packed.SCB / 127, requires_grad=False)
        self.bias = loaded.bias

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight, (outputs, inputs), computed in float32 and rounded to `dtype`."""
        return (self.weight * self.scale[:, None]).to(dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Return x W^T + b in the number format of the input."""
        product: Tensor = FrozenProduct.apply(input, self.dequantised, self.bias)
        return product


def compute_at_full_precision(model: nn.Module) -> None:
    """Replace every 8-bit layer of bitsandbytes by an `Int8Linear`. Call it before the model's first forward."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, bnb.nn.Linear8bitLt):
            model.set_submodule(name, Int8Linear(layer))
