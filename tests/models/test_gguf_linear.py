"""Weights in GGUF blocks against the gguf package's own dequantisation, bit for bit."""

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from lowrank_rlhf.models.layers import gguf_linear
from lowrank_rlhf.models.layers.gguf_linear import GgufLinear, dequantise_rows
from lowrank_rlhf.sources.gguf_blocks import BLOCK_TYPES

each_type = pytest.mark.parametrize("kind", BLOCK_TYPES)


def random_blocks(kind: str, rows: int, blocks: int = 3) -> tuple[Tensor, Tensor]:
    """Return random bytes as blocks of that type, finite, and the weights that the gguf package reads from them."""
    number = gguf.GGMLQuantizationType[kind]
    size = gguf.GGML_QUANT_SIZES[number][1]
    raw = np.random.default_rng(0).integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    halves = {"Q6_K": [208]}.get(kind, [0, 2] if kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else [0])
    for start in halves:
        raw[..., start + 1] &= 0b10111111  # exponents below 16: no infinity, and numbers below 2
    raw = raw.reshape(rows, -1)
    return torch.from_numpy(raw), torch.from_numpy(gguf.dequantize(raw, number).copy())


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype == torch.float32
    assert torch.equal(found.contiguous().view(torch.int32), expected.contiguous().view(torch.int32))


@each_type
def test_each_type_to_the_last_bit(kind) -> None:
    blocks, expected = random_blocks(kind, rows=7)
    inputs = expected.shape[1]
    assert expected.abs().max() > 1
    assert_same_bits(GgufLinear(blocks, kind, inputs).dequantised(), expected)
    assert_same_bits(dequantise_rows(blocks, kind, inputs, torch.float32), expected)
    bfloat16 = GgufLinear(blocks, kind, inputs).dequantised(torch.bfloat16)
    assert torch.equal(bfloat16, expected.bfloat16())


@each_type
def test_a_large_matrix_in_parts(kind, monkeypatch) -> None:
    blocks, expected = random_blocks(kind, rows=7)
    inputs = expected.shape[1]
    monkeypatch.setattr(gguf_linear, "_LARGE", inputs)
    monkeypatch.setattr(gguf_linear, "_PART", 3 * inputs)
    assert_same_bits(GgufLinear(blocks, kind, inputs).dequantised(), expected)
    assert torch.equal(GgufLinear(blocks, kind, inputs).dequantised(torch.float16), expected.half())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K"])
def test_4_bits_where_pytorchs_own_loop_does_not_run(kind, monkeypatch) -> None:
    blocks, expected = random_blocks(kind, rows=7)
    monkeypatch.setattr(gguf_linear, "_unpack_nibbles", gguf_linear.unpack_nibbles_anywhere)
    assert_same_bits(GgufLinear(blocks, kind, expected.shape[1]).dequantised(), expected)


@each_type
def test_memory_is_that_of_the_blocks(kind) -> None:
    blocks, expected = random_blocks(kind, rows=64, blocks=8)
    layer = GgufLinear(blocks, kind, expected.shape[1])
    held = sum(parameter.nbytes for parameter in layer.parameters())
    assert blocks.nbytes <= held <= 1.04 * blocks.nbytes


@each_type
def test_product_and_gradient_are_those_of_the_dense_layer(kind) -> None:
    blocks, weight = random_blocks(kind, rows=7)
    bias = torch.nn.Parameter(torch.randn(7), requires_grad=False)
    layer = GgufLinear(blocks, kind, weight.shape[1], bias)
    x = torch.randn(2, 3, weight.shape[1])
    own, dense = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = layer(own), torch.nn.functional.linear(dense, weight, bias)
    assert torch.equal(found, expected)
    (found.sin()).sum().backward()
    (expected.sin()).sum().backward()
    torch.testing.assert_close(own.grad, dense.grad)


def test_the_backward_pass_keeps_no_dequantised_copy() -> None:
    blocks, weight = random_blocks("Q4_K", rows=7)
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        GgufLinear(blocks, "Q4_K", weight.shape[1])(torch.randn(4, weight.shape[1], requires_grad=True))
    assert kept == []


def test_rows_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of 20 bytes in Q4_1, and by config"):
        GgufLinear(torch.zeros(2, 20, dtype=torch.uint8), "Q4_1", 64)
