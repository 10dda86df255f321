"""Log-probabilities of the response tokens, without ever holding logits of all positions."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from lowrank_rlhf.maths.sequences import Sequences

CHUNK = 256
"""Tokens whose logits exist at the same time: 256 x 49,152 float32 are 50 MB."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Both (B, T) float32 and 0 outside the response; position t is about the token at t."""

    logprobs: Tensor
    entropy: Tensor | None
    """Nats; carries no gradient. None unless asked for."""


def token_logprobs(
    hidden: Tensor, batch: Sequences, model: PreTrainedModel, temperature: float, entropy: bool = False
) -> TokenLogprobs:
    """log softmax(logits / temperature) at each response token.

    Args:
        hidden: (B, T, h), the decoder's last hidden states; the token at t is predicted from position t - 1.
        model: brings the vocabulary projection, which is applied to response positions only, in chunks whose logits
            are computed again in the backward pass.
    """
    predicts = batch.response[:, 1:]
    states = hidden[:, :-1][predicts]
    targets = batch.ids[:, 1:][predicts]
    parts = []
    for start in range(0, len(targets), CHUNK):
        chunk = (states[start : start + CHUNK], targets[start : start + CHUNK], model, temperature, entropy)
        graph = torch.is_grad_enabled()
        parts.append(checkpoint(_chunk, *chunk, use_reentrant=False) if graph else _chunk(*chunk))
    flat = torch.cat([part[0] for part in parts])
    blank = torch.zeros(batch.response.shape, device=flat.device)
    entropies = torch.cat([part[1] for part in parts if part[1] is not None]) if entropy else None
    return TokenLogprobs(
        blank.masked_scatter(batch.response, flat),
        None if entropies is None else blank.masked_scatter(batch.response, entropies),
    )


def _chunk(
    states: Tensor, targets: Tensor, model: PreTrainedModel, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    logits = vocabulary_logits(states, model) / temperature
    normaliser = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - normaliser
    if not entropy:
        return logprobs, None
    with torch.no_grad():
        shifted = logits - normaliser[:, None]
        return logprobs, -(shifted.exp() * shifted).sum(-1)


def vocabulary_logits(states: Tensor, model: PreTrainedModel) -> Tensor:
    """Hidden states (N, h) -> float32 logits (N, V), capped where the architecture does so (Gemma 2)."""
    logits = model.get_output_embeddings()(states).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)
