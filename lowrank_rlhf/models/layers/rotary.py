"""Rotary positions of queries and keys together: four operations each way, where most models' own are eleven and 25."""

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

_NAME = "apply_rotary_pos_emb"
"""Name of the function in the modules of transformers; each architecture has its own."""
_Rotate = Callable[..., tuple[Tensor, Tensor]]


class _Rotation(torch.autograd.Function):
    """(B, H, T, d) queries and (B, G, T, d) keys, cos and sin (B, T, d) -> both rotated (Su et al. 2021, eq. 34).

    Number i is paired with number i + d / 2, as in Llama. The gradient is rotated back.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _rotated(q, k, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad_q, grad_k), (cos, sin) = gradients, ctx.saved_tensors
        return *_rotated(grad_q, grad_k, cos, sin, -1), None, None


def _rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, direction: int) -> tuple[Tensor, Tensor]:
    """Return both times the rotation, or for direction -1 its transpose, stored token by token as projections are."""
    half, cos, sin = q.shape[-1] // 2, cos[:, :, None], sin[:, :, None]
    first, second = (slice(half), slice(half, None))[::direction]
    x = torch.cat((q.transpose(1, 2), k.transpose(1, 2)), 2)  # (B, T, H + G, d)
    rotated = x * cos
    rotated[..., first].addcmul_(x[..., second], sin[..., :half], value=-1)
    rotated[..., second].addcmul_(x[..., first], sin[..., half:])
    rotated = rotated.transpose(1, 2)
    return rotated[:, : q.shape[1]], rotated[:, q.shape[1] :]


def fuse_rotary(decoder: nn.Module) -> int:
    """Rotate queries and keys together in every attention layer of which this is the formula; return their number.

    Such a layer gets a copy of its class's forward that calls this rotation instead of the architecture's function.
    """
    fused = 0
    for module in decoder.modules():
        forward: Any = type(module).forward
        own = getattr(forward, "__globals__", {}).get(_NAME)
        if own is None or "forward" in vars(module) or _NAME not in forward.__code__.co_names or not _same(own):
            continue
        names = forward.__globals__ | {_NAME: _with_fallback(own)}
        copy = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
        copy.__kwdefaults__ = forward.__kwdefaults__
        vars(module)["forward"] = MethodType(copy, module)
        fused += 1
    return fused


def _with_fallback(own: _Rotate) -> _Rotate:
    """Return the rotation of both, which leaves everything but whole heads of one number format to the model's own."""

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
        whole = cos.dim() == 3 and q.shape[-1] == k.shape[-1] == cos.shape[-1]
        if rest or named or not whole or not q.dtype == k.dtype == cos.dtype:
            return own(q, k, cos, sin, *rest, **named)
        both: tuple[Tensor, Tensor] = _Rotation.apply(q, k, cos, sin)
        return both

    return rotate


def _same(own: _Rotate) -> bool:
    """Compare the function with this rotation on random numbers, where cos and sin are any factors."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 3, 8), (2, 2, 3, 8), (2, 3, 8), (2, 3, 8))
    given = [torch.randn(shape, generator=generator) for shape in shapes]
    try:
        expected = own(*given)
    except Exception:  # other arguments: of one tensor, of images, with position ids
        return False
    found = _with_fallback(own)(*given)
    return len(expected) == 2 and all(
        x.shape == y.shape and torch.allclose(x, y, atol=1e-5) for x, y in zip(found, expected, strict=True)
    )
