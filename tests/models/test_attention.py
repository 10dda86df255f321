"""Attention for short sequences against PyTorch's own, and that models use it."""

import pytest
import torch
from tiny import gradients, make_batch, make_roles
from torch.nn.functional import scaled_dot_product_attention

from lowrank_rlhf.models import roles as roles_module
from lowrank_rlhf.models.layers import attention
from lowrank_rlhf.models.roles import Role


def tensors(tokens: int, length: int, heads: int, key_heads: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens + length)
    shapes = [(2, heads, tokens, 8), (2, key_heads, length, 8), (2, key_heads, length, 8)]
    return [torch.randn(shape, generator=generator, dtype=torch.float32).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("tokens", "length", "heads", "key_heads"), [(7, 7, 4, 2), (5, 9, 3, 3), (6, 6, 6, 1)])
def test_result_and_gradients_are_those_of_pytorch(tokens, length, heads, key_heads, masked) -> None:
    causal = torch.ones(tokens, length, dtype=torch.bool).tril(length - tokens)
    padding = torch.arange(length) >= torch.tensor([0, 2])[:, None]  # left padding in the second row
    mask = causal & padding[:, None, None] if masked else None
    mine, theirs = tensors(tokens, length, heads, key_heads), tensors(tokens, length, heads, key_heads)
    found, _ = attention.attention(torch.nn.Module(), *mine, mask, scaling=0.3)
    whole = causal[None, None] if mask is None else mask
    oracle = scaled_dot_product_attention(*theirs, attn_mask=whole, scale=0.3, enable_gqa=True).transpose(1, 2)
    real = whole.any(-1).expand(2, 1, tokens)[:, 0, :, None, None]  # a query that may look nowhere counts for nothing
    weights = torch.sin(torch.arange(found.numel(), dtype=torch.float32)).view(found.shape) * real
    torch.testing.assert_close(found * real, oracle.nan_to_num() * real, rtol=1e-5, atol=1e-6)
    (found * weights).sum().backward()
    (oracle.nan_to_num() * weights).sum().backward()
    for ours, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours.grad, other.grad.nan_to_num(), rtol=1e-4, atol=1e-6)


def test_the_backward_keeps_the_given_mask_and_no_copy_for_each_head() -> None:
    mask, kept = torch.ones(7, 7, dtype=torch.bool).tril()[None, None].repeat(2, 1, 1, 1), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        attention.attention(torch.nn.Module(), *tensors(7, 7, 6, 3), mask)
    places = {tensor.data_ptr() for tensor in kept if tensor.dtype == torch.bool}
    assert places == {mask.data_ptr()}


def test_in_bfloat16_it_is_nearer_to_the_truth_than_a_step_of_bfloat16() -> None:
    q, k, v = (tensor.detach().bfloat16() for tensor in tensors(7, 7, 4, 2))
    found, _ = attention.attention(torch.nn.Module(), q, k, v, None)
    truth = scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True, enable_gqa=True)
    torch.testing.assert_close(found.double(), truth.transpose(1, 2), rtol=2**-8, atol=1e-6)


def test_long_rows_go_to_pytorch_without_a_mask(tiny_base) -> None:
    """With one it would repeat keys and values for each query head."""
    decoder = make_roles(tiny_base()).decoder
    for tokens, masked in ((attention.LONGEST, True), (attention.LONGEST + 1, False)):
        mask = attention.right_padding_mask(decoder, torch.ones(2, tokens, dtype=torch.bool))
        assert (mask is not None) is masked


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3_text", "mistral"])
def test_long_sequences_go_to_pytorch_with_the_same_gradients(tiny_base, architecture, monkeypatch) -> None:
    roles, batch = make_roles(tiny_base(architecture=architecture)), make_batch()
    calls = []
    real = attention._Attention.apply
    monkeypatch.setattr(attention._Attention, "apply", lambda *given: calls.append(1) or real(*given))
    short = gradients(roles, Role.POLICY, batch)
    assert len(calls) == 2  # one for each layer
    monkeypatch.setattr(attention, "LONGEST", 3)
    long = gradients(roles, Role.POLICY, batch)
    assert len(calls) == 2
    for name, gradient in short.items():
        torch.testing.assert_close(gradient, long[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3_text"])  # with and without a sliding window
@pytest.mark.parametrize("role", [Role.POLICY, Role.CRITIC])
def test_sdpa_needs_no_mask_for_padding_on_the_right(tiny_base, architecture, role, monkeypatch) -> None:
    roles, batch, masks = make_roles(tiny_base(architecture=architecture)), make_batch(), []
    roles.decoder.set_attn_implementation("sdpa")
    roles.decoder.register_forward_pre_hook(
        lambda _, __, named: masks.append(named["attention_mask"]), with_kwargs=True
    )
    without = gradients(roles, role, batch)
    monkeypatch.setattr(roles_module, "right_padding_mask", lambda _, attention: attention.long())
    expected = gradients(roles, role, batch)
    assert masks[0] is None
    assert torch.equal(masks[1], batch.attention.long())
    for name, gradient in expected.items():
        torch.testing.assert_close(without[name], gradient, rtol=1e-4, atol=1e-6)
