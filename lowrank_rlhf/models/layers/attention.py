"""Attention for short sequences on a CPU, where PyTorch's backward takes a fifth of a training step.

Registered with transformers as `short_sequences`, with the masks of `sdpa`. As in flash attention, only queries, keys
and values are saved for the backward, which recomputes the probabilities. Everything is computed in float32: the
products are small at these lengths, and only the result is rounded to the model's number format.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "short_sequences"
_HARMLESS = frozenset(
    {
        "cache_position",
        "logits_to_keep",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "sliding_window",  # the mask contains it
        "use_cache",
    }
)
"""Keywords of the model's forward and of its attention that change nothing in the product."""
LONGEST = 256
"""Longest sequence computed here; beyond it, the quadratic cost of the full score matrix exceeds the gain."""


class _Attention(torch.autograd.Function):
    """softmax(scale q k^T where mask) v for grouped queries: (N, G T, d), (N, S, d), (N, S, e) -> (N, G T, e) float32.

    N is rows times key heads, G the query heads per key head. `mask`, (B or 1, 1, 1, T, S), is True where a query may
    attend. It is saved as it is, one tensor of the model for all layers: repeated for each head it would be as large as
    the inputs.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, heads: int, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        ctx.heads, ctx.scale = heads, scale
        return torch.bmm(_probabilities(q.float(), k.float(), mask, heads, scale), v.float())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        saved_q, saved_k, saved_v, mask = ctx.saved_tensors
        q, k, v = saved_q.float(), saved_k.float(), saved_v.float()
        probabilities = _probabilities(q, k, mask, ctx.heads, ctx.scale)
        grad_v = torch.bmm(probabilities.transpose(1, 2), grad)
        grad_scores = torch.bmm(grad, v.transpose(1, 2))
        # Derivative of softmax: p (g - sum p g).
        grad_scores.sub_((grad_scores * probabilities).sum(-1, keepdim=True)).mul_(probabilities).mul_(ctx.scale)
        grad_q, grad_k = torch.bmm(grad_scores, k), torch.bmm(grad_scores.transpose(1, 2), q)
        return grad_q.to(saved_q.dtype), grad_k.to(saved_k.dtype), grad_v.to(saved_v.dtype), None, None, None


def _probabilities(q: Tensor, k: Tensor, mask: Tensor, heads: int, scale: float) -> Tensor:
    scores = torch.bmm(q, k.transpose(1, 2)).mul_(scale)  # (N, G T, S)
    tokens, length = mask.shape[-2:]
    each = scores.view(-1, heads, scores.shape[1] // tokens, tokens, length)  # (B, key heads, G, T, S)
    # A score plus the lowest number is the lowest number. `masked_fill_` gives the same in three times the time.
    each.add_(torch.where(mask, 0.0, torch.finfo(scores.dtype).min))
    return scores.softmax(-1)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Compute attention with the signature of transformers' attention functions.

    query (B, H, T, d), key (B, H / G, S, d), value (B, H / G, S, e), mask (B, 1, T, S), None if causal. Returns
    (B, T, H, e). Long sequences and dropout use `sdpa`.

    Raises `NotImplementedError` for keywords whose effect is not known: attention sinks, capped scores, biases.
    """
    (rows, heads, tokens, size), (_, key_heads, length, _) = query.shape, key.shape
    if unknown := [name for name, value in rest.items() if value is not None and name not in _HARMLESS]:
        raise NotImplementedError(f"{NAME} attention does not support {', '.join(sorted(unknown))}")
    causal_layer = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if not (causal_layer if attention_mask is None else attention_mask.dtype == torch.bool):
        raise NotImplementedError(f"{NAME} attention supports causal layers and boolean masks only")
    if length > LONGEST or dropout:
        found: tuple[Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, is_causal=is_causal, **rest
        )
        return found
    if attention_mask is None:
        causal = torch.ones(tokens, length, dtype=torch.bool, device=query.device).tril(length - tokens)
        attention_mask = causal[None, None]
    groups = heads // key_heads
    q = query.reshape(rows * key_heads, groups * tokens, size)
    k, v = (tensor.reshape(rows * key_heads, length, -1) for tensor in (key, value))
    scale = size**-0.5 if scaling is None else scaling
    output = _Attention.apply(q, k, v, attention_mask[:, :, None], key_heads, scale)
    return output.view(rows, heads, tokens, -1).transpose(1, 2).to(query.dtype).contiguous(), None


def right_padding_mask(decoder: Any, attention: Tensor) -> Tensor | None:
    """Return the mask for rows that are padded on the right, (B, T), or None where the decoder needs none.

    Padding comes after the tokens that a causal layer reads. Without a mask `sdpa` repeats no keys and values for
    grouped queries and uses a faster kernel, with the same results at the tokens; `attention` above calls it for long
    rows. The others here would make the mask themselves, in every layer.
    """
    implementation = decoder.config._attn_implementation
    by_sdpa = implementation == "sdpa" or (implementation == NAME and attention.shape[1] > LONGEST)
    return None if by_sdpa else attention.long()


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
