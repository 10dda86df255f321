"""Linear layers whose frozen weight stays in the blocks of a GGUF file and is dequantised where it is used.

Every supported block type is w = scale x (integer - zero) + offset, for groups of 16 or 32 weights along the inputs.
A file interleaves integers and scales block by block; here they are held apart, with the same bits, so that a whole
matrix is dequantised in a few long loops. In K types the scale is again the product of a float16 per 256 weights and
an integer per group. The formulas are those of ggml-quants.c, and give the same float32 to the last bit.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lowrank_rlhf.models.layers.frozen_product import FrozenProduct

_LARGE, _PART = 2**21, 2**19
"""Weights of a matrix that is dequantised in parts, and of a part: 2 MiB in float32."""


class _Parts(NamedTuple):
    """Contents of the blocks of a weight (R, in): n blocks a row, g groups a row."""

    integers: Tensor
    """(R, in) uint8."""
    scale: Tensor | None
    """(R, n) float16."""
    offset: Tensor | None = None
    """(R, n) float16."""
    group_scale: Tensor | None = None
    """(R, g) uint8 or int8, by which `scale` is multiplied."""
    group_offset: Tensor | None = None
    """(R, g) uint8, by which `offset` is multiplied."""


class _BlockType(NamedTuple):
    weights: int
    """Weights in a block."""
    size: int
    """Bytes of a block."""
    bits: int
    """Bits of an integer."""
    zero: int
    """Integer that means 0, before the offset."""
    split: Callable[[Tensor], _Parts]
    """From (R, n, size) uint8."""


class GgufLinear(nn.Linear):
    """Frozen linear layer with a weight in GGUF blocks."""

    def __init__(self, blocks: Tensor, kind: str, inputs: int, bias: nn.Parameter | None = None) -> None:
        """Take the weight from `blocks`, (outputs, bytes of a row) uint8, of block type `kind`.

        Raises `ValueError` if a row does not have that number of inputs.
        """
        super().__init__(inputs, len(blocks), bias=False, device="meta")
        self.kind, self.zero, self.bits = kind, _TYPES[kind].zero, _TYPES[kind].bits
        parts = _split(blocks, kind, inputs)
        if self.bits == 4:
            parts, packed = _pack_nibbles(parts, self.zero)
        else:
            packed = _pack(parts.integers, self.bits & ~3)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.high = _frozen(_pack(parts.integers >> 4, self.bits & 3)) if self.bits & 3 else None
        self.scale, self.offset, self.group_scale, self.group_offset = map(_frozen, parts[1:])
        self.register_parameter("bias", bias)

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight, (outputs, inputs), computed in float32 and rounded to `dtype`.

        A large matrix is computed in parts that stay in the processor's cache.
        """
        if self.out_features * self.in_features <= _LARGE or self.weight.device.type != "cpu":
            return self._rows(slice(None)).to(dtype)
        whole = torch.empty(self.out_features, self.in_features, dtype=dtype)
        for part in whole.split(max(1, _PART // self.in_features)):
            start = part.storage_offset() // self.in_features
            part.copy_(self._rows(slice(start, start + len(part))))
        return whole

    def _rows(self, rows: slice) -> Tensor:
        """Return some rows of the weight, (R, inputs) float32."""
        if self.bits == 4:
            blocks = self.weight.unflatten(0, (self.out_features, -1))[rows]  # (R, blocks, bytes)
            weight = _unpack_nibbles(blocks.flatten(0, 1)).view(len(blocks), self.in_features)
        else:
            weight = self._integers(rows).float()
        factors = (self.scale, self.offset, self.group_scale, self.group_offset)
        return _scaled(weight, *(None if factor is None else factor[rows] for factor in factors))

    def _integers(self, rows: slice) -> Tensor:
        """Return the integers less `zero`, (R, inputs) int8, of 5, 6 or 8 bits."""
        packed = self.weight[rows]
        if self.high is None:
            return packed.view(torch.int8)
        integers, half = packed.new_empty(len(packed), self.in_features), self.in_features // 2
        torch.bitwise_and(packed, 15, out=integers[:, :half])
        torch.bitwise_right_shift(packed, 4, out=integers[:, half:])
        integers |= _unpack(self.high[rows], self.in_features) << 4
        signed = integers.view(torch.int8)
        return signed.sub_(self.zero) if self.zero else signed

    def forward(self, input: Tensor) -> Tensor:
        """Return x W^T + b in the number format of the input."""
        product: Tensor = FrozenProduct.apply(input, self.dequantised, self.bias)
        return product


def dequantise_rows(blocks: Tensor, kind: str, inputs: int, dtype: torch.dtype) -> Tensor:
    """Return the matrix (R, inputs) of blocks (R, bytes of a row), some rows at a time to keep little in float32."""
    zero, found = _TYPES[kind].zero, []
    for some in blocks.split(max(1, 2**22 // inputs)):
        integers, *factors = _split(some, kind, inputs)
        found.append(_scaled((integers.view(torch.int8) - zero).float(), *factors).to(dtype))
    return torch.cat(found)


def _split(blocks: Tensor, kind: str, inputs: int) -> _Parts:
    block_type = _TYPES[kind]
    if blocks.shape[1] * block_type.weights != inputs * block_type.size:
        raise ValueError(f"rows of {blocks.shape[1]} bytes in {kind}, and by config.json they have {inputs} weights")
    return block_type.split(blocks.unflatten(1, (-1, block_type.size)))


def _scaled(
    weight: Tensor, scale: Tensor | None, offset: Tensor | None, group_scale: Tensor | None, group_offset: Tensor | None
) -> Tensor:
    """Return scale x weight + offset, (R, in) float32, in place."""
    for factors, groups, apply in ((scale, group_scale, Tensor.mul_), (offset, group_offset, Tensor.add_)):
        if factors is not None:
            product = _product(factors, groups)  # (R, g)
            apply(weight.unflatten(1, (product.shape[1], -1)), product[..., None])  # (R, g, weights in a group)
    return weight


def _product(blocks: Tensor, groups: Tensor | None) -> Tensor:
    """Return the factors of all groups, (R, g) float32, from those of blocks (R, n) and of groups (R, g)."""
    wide = blocks.float()
    if groups is None:
        return wide
    return (wide[..., None] * groups.float().unflatten(1, (wide.shape[1], -1))).flatten(1)


def _frozen(tensor: Tensor | None) -> nn.Parameter | None:
    return None if tensor is None else nn.Parameter(tensor.contiguous(), requires_grad=False)


def _pack_nibbles(parts: _Parts, zero: int) -> tuple[_Parts, Tensor]:
    """Pack integers of 4 bits in rows for `_unpack_nibbles`, and return the other parts with what is left to apply.

    Where scale and offset are float16 per 32 weights (Q4_1), a packed row is such a block with its own scale and
    offset, and nothing is left. Else it is a row of the weight, with scale 1 and offset -zero.
    """
    integers, scale, offset = parts.integers, parts.scale, parts.offset
    if scale is not None and offset is not None and parts.group_offset is None:
        integers, parts = integers.reshape(scale.numel(), -1), parts._replace(scale=None, offset=None)
        ends = torch.stack([scale, offset], -1).view(-1, 2)  # (R n, 2)
    else:
        ends = torch.tensor([1, -zero], dtype=torch.float16, device=integers.device).expand(len(integers), 2)
    packed = integers[:, ::2] | integers[:, 1::2] << 4
    return parts, torch.cat([packed, ends.contiguous().view(torch.uint8)], 1)


def _unpack_nibbles(rows: Tensor) -> Tensor:
    """Return scale x integer + offset in float32: (R, k + 4) uint8, whose last bytes are 2 float16, -> (R, 2 k).

    On a CPU one vectorised loop of PyTorch's own. It may fuse product and sum, which rounds once: the same result here,
    because the product of a float16 and 4 bits is exact in float32.
    """
    if rows.device.type != "cpu":
        return unpack_nibbles_anywhere(rows)
    unpacked: Tensor = torch.ops.quantized.embedding_bag_4bit_unpack(rows)
    return unpacked


def unpack_nibbles_anywhere(rows: Tensor) -> Tensor:
    """Return the same on any device."""
    packed, ends = rows[:, :-4], rows[:, -4:].contiguous().view(torch.float16).float()
    integers = torch.stack([packed & 15, packed >> 4], -1).flatten(1)
    return integers.float().mul_(ends[:, :1]).add_(ends[:, 1:])


def _pack(integers: Tensor, bits: int) -> Tensor:
    """Pack the lowest `bits` of (R, in) uint8 in (R, k), k = in bits / 8; byte j has the integers at j, j + k, ..."""
    if bits == 8:
        return integers
    parts = (integers & (2**bits - 1)).unflatten(1, (8 // bits, -1))
    return (parts << _shifts(bits, parts)).sum(1, dtype=torch.uint8)


def _unpack(packed: Tensor, inputs: int) -> Tensor:
    bits = 8 * packed.shape[1] // inputs
    parts = packed[:, None] >> _shifts(bits, packed)  # (R, 8 / bits, in bits / 8)
    return parts.bitwise_and_(2**bits - 1).flatten(1)


def _shifts(bits: int, like: Tensor) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=like.device)[:, None]


# --- Layouts of the blocks, (R, n, bytes) uint8, as in ggml-common.h


def _half(blocks: Tensor, start: int) -> Tensor:
    """Return the float16 at a byte of each block, (R, n)."""
    return blocks[..., start : start + 2].contiguous().view(torch.float16).squeeze(-1)


def _nibbles(bytes_: Tensor) -> Tensor:
    """Return low, then high halves: (..., k) -> (..., 2 k)."""
    return torch.cat([bytes_ & 15, bytes_ >> 4], -1)


def _bits(bytes_: Tensor, bits: int) -> Tensor:
    """Return numbers of `bits` bits: (..., k) -> (..., 8 / bits, k), the lowest first."""
    return (bytes_[..., None, :] >> _shifts(bits, bytes_)) & (2**bits - 1)


def _fifth(bytes_: Tensor) -> Tensor:
    """Return the fifth bits of 32 integers, one after another in 4 bytes: (..., 4) -> (..., 32), times 16."""
    return _bits(bytes_, 1).transpose(-1, -2).flatten(-2) << 4


def _split_q4_0(blocks: Tensor) -> _Parts:
    return _Parts(_nibbles(blocks[..., 2:]).flatten(1), _half(blocks, 0))


def _split_q4_1(blocks: Tensor) -> _Parts:
    return _Parts(_nibbles(blocks[..., 4:]).flatten(1), _half(blocks, 0), _half(blocks, 2))


def _split_q5_0(blocks: Tensor) -> _Parts:
    integers = _nibbles(blocks[..., 6:]) | _fifth(blocks[..., 2:6])
    return _Parts(integers.flatten(1), _half(blocks, 0))


def _split_q5_1(blocks: Tensor) -> _Parts:
    integers = _nibbles(blocks[..., 8:]) | _fifth(blocks[..., 4:8])
    return _Parts(integers.flatten(1), _half(blocks, 0), _half(blocks, 2))


def _split_q8_0(blocks: Tensor) -> _Parts:
    return _Parts(blocks[..., 2:].flatten(1), _half(blocks, 0))


def _split_q4_k(blocks: Tensor) -> _Parts:
    return _with_groups(blocks, _nibbles(blocks[..., 16:].unflatten(-1, (4, 32))))


def _split_q5_k(blocks: Tensor) -> _Parts:
    low = _nibbles(blocks[..., 48:].unflatten(-1, (4, 32)))  # (R, n, 4, 64)
    high = _bits(blocks[..., 16:48], 1)  # (R, n, 8, 32): bit i of a byte belongs to group i
    return _with_groups(blocks, low | (high << 4).view(low.shape))


def _with_groups(blocks: Tensor, integers: Tensor) -> _Parts:
    """Add scales and minima of a block's 8 groups, in 12 bytes of 6 bits; the minima are subtracted."""
    first, second, both = blocks[..., 4:16].unflatten(-1, (3, 4)).unbind(-2)  # (R, n, 4) each
    scales = torch.cat([first & 63, (both & 15) | ((first >> 2) & 48)], -1)  # (R, n, 8)
    minima = torch.cat([second & 63, (both >> 4) | ((second >> 2) & 48)], -1)
    return _Parts(integers.flatten(1), _half(blocks, 0), -_half(blocks, 2), scales.flatten(1), minima.flatten(1))


def _split_q6_k(blocks: Tensor) -> _Parts:
    low = _nibbles(blocks[..., :128].unflatten(-1, (2, 64)))  # (R, n, 2, 128)
    high = _bits(blocks[..., 128:192].unflatten(-1, (2, 32)), 2)  # (R, n, 2, 4, 32)
    integers = low | (high.flatten(-2) << 4)
    scales = blocks[..., 192:208].contiguous().view(torch.int8)
    return _Parts(integers.flatten(1), _half(blocks, 208), group_scale=scales.flatten(1))


_TYPES = {
    "Q4_0": _BlockType(32, 18, 4, 8, _split_q4_0),
    "Q4_1": _BlockType(32, 20, 4, 0, _split_q4_1),
    "Q5_0": _BlockType(32, 22, 5, 16, _split_q5_0),
    "Q5_1": _BlockType(32, 24, 5, 0, _split_q5_1),
    "Q8_0": _BlockType(32, 34, 8, 0, _split_q8_0),
    "Q4_K": _BlockType(256, 144, 4, 0, _split_q4_k),
    "Q5_K": _BlockType(256, 176, 5, 0, _split_q5_k),
    "Q6_K": _BlockType(256, 210, 6, 32, _split_q6_k),
}
