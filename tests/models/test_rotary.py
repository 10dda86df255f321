"""Rotary positions of queries and keys together against the architectures' own functions."""

import pytest
import torch
from tiny import gradients, make_batch, make_roles
from torch import nn
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as interleaved
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as partial_heads
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lowrank_rlhf.models.layers.rotary import fuse_rotary
from lowrank_rlhf.models.roles import Role


def with_own(decoder: nn.Module) -> nn.Module:
    for module in decoder.modules():
        if type(module).__name__.endswith("Attention"):
            vars(module).pop("forward", None)
    return decoder


@pytest.mark.parametrize(
    ("architecture", "count"),
    [("llama", 2), ("qwen3", 2), ("gemma3_text", 2), ("phi3", 2), ("stablelm", 2), ("cohere", 0), ("glm4", 0)],
)  # two layers; cohere and glm4 pair neighbours, stablelm rotates a part of each head
def test_results_and_gradients_are_those_of_the_model(tiny_base, architecture, count) -> None:
    roles, batch = make_roles(tiny_base(architecture=architecture)), make_batch()
    with_own(roles.decoder)
    expected = gradients(roles, Role.POLICY, batch)
    assert fuse_rotary(roles.decoder) == count
    assert fuse_rotary(roles.decoder) == 0
    for name, gradient in gradients(roles, Role.POLICY, batch).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


class _Attention(nn.Module):
    def forward(self, q, k, cos, sin, *, rotate=True):
        return apply_rotary_pos_emb(q, k, cos, sin) if rotate else (q, k)


class _WithSteps(_Attention):
    def forward(self, q, k, cos, sin):
        return apply_rotary_pos_emb(q, k, cos, sin, 2)


def given(dtype: torch.dtype, rotated: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 5, 8), (2, 3, 5, 8), (2, 5, rotated), (1, 5, rotated))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def results(layer: nn.Module, q, k, cos, sin) -> list[torch.Tensor]:
    q, k = q.clone().requires_grad_(), k.clone().requires_grad_()
    both = layer(q, k, cos, sin)
    return [*both, *torch.autograd.grad(sum((x * torch.sin(x)).sum() for x in both), (q, k))]


def test_both_ways_for_any_factors() -> None:
    """Cos and sin of YaRN are longer than 1: the backward is the transpose, not the inverse."""
    layer, numbers = _Attention(), given(torch.float64)
    expected = results(layer, *numbers)
    assert fuse_rotary(layer) == 1
    for found, wanted in zip(results(layer, *numbers), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert layer(*numbers, rotate=False)[0] is numbers[0]


def test_bfloat16_is_rounded_once_less() -> None:
    layer, numbers = _Attention(), given(torch.bfloat16)
    fuse_rotary(layer)
    exact = apply_rotary_pos_emb(*(number.float() for number in numbers))
    own = apply_rotary_pos_emb(*numbers)
    for found, theirs, wanted in zip(layer(*numbers), own, exact, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - wanted).abs().mean() < (theirs.float() - wanted).abs().mean()


def test_everything_else_is_left_to_the_model(monkeypatch) -> None:
    layer = _WithSteps()
    numbers = [*(x.transpose(1, 2) for x in given(torch.float32)[:2]), *given(torch.float32)[2:]]
    expected = layer(*numbers)
    assert fuse_rotary(layer) == 1
    assert all(torch.equal(x, y) for x, y in zip(layer(*numbers), expected, strict=True))
    forward = _Attention.forward
    monkeypatch.setitem(forward.__globals__, "apply_rotary_pos_emb", partial_heads)
    layer, numbers = _Attention(), given(torch.float32, rotated=4)
    expected = layer(*numbers)
    assert fuse_rotary(layer) == 1
    assert all(torch.equal(x, y) for x, y in zip(layer(*numbers), expected, strict=True))
    for other in (interleaved, lambda q, cos, sin: q * cos + sin, lambda *given: given[0]):
        monkeypatch.setitem(forward.__globals__, "apply_rotary_pos_emb", other)
        assert fuse_rotary(_Attention()) == 0
