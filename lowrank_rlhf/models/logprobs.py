"""Log-probabilities of the response tokens, computed in chunks: logits of all positions never exist at once."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lowrank_rlhf.maths.sequences import Sequences

CHUNK = 256
"""Tokens per chunk of logits: 256 x 49,152 float32 are 50 MB."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities and entropies, (B, T) float32, 0 outside the response; position t refers to the token at t."""

    logprobs: Tensor
    entropy: Tensor | None
    """In nats, without gradient; None unless requested."""


def token_logprobs(
    hidden: Tensor,
    batch: Sequences,
    model: PreTrainedModel,
    temperature: float,
    entropy: bool = False,
    vocabulary: int | None = None,
) -> TokenLogprobs:
    """Return log softmax(logits / temperature) at each response token.

    Args:
        hidden: (B, T, h), the decoder's last hidden states; the token at t is predicted from position t - 1.
        batch: token ids and response mask, (B, T).
        model: its vocabulary projection is applied to response positions only, chunk by chunk.
        temperature: divisor of the logits, as in sampling.
        entropy: whether to return the entropies too.
        vocabulary: number of the first token ids that have a probability, as in sampling; all by default.
    """
    rows, positions = batch.response_positions()  # (N,) each, N response tokens of all rows, row by row
    states = hidden[rows, positions - 1]  # (N, h): position t - 1 predicts the token at t
    targets = batch.ids[rows, positions]  # (N,)
    logprobs, entropies = _Logprobs.apply(states, targets, model, temperature, entropy, vocabulary)
    blank = torch.zeros(batch.response.shape, device=logprobs.device)
    return TokenLogprobs(
        blank.masked_scatter(batch.response, logprobs),  # (N,) -> (B, T), in the same order
        blank.masked_scatter(batch.response, entropies) if entropy else None,
    )


class _Logprobs(torch.autograd.Function):
    """(N, h) states, (N,) targets -> log-probabilities of the targets and entropies, (N,) each.

    The gradient of a token's log-probability by its state, (W_target - sum_v p_v W_v) / temperature, is formed in the
    forward while the chunk's probabilities are at hand: the backward needs neither logits nor a second projection.
    The projection itself is frozen.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        targets: Tensor,
        model: PreTrainedModel,
        temperature: float,
        entropy: bool,
        vocabulary: int | None,
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(targets), device=states.device)
        entropies = torch.zeros_like(logprobs)
        gradients = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        weight: Tensor = model.get_output_embeddings().weight[:vocabulary]  # (V, h)
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            logits = vocabulary_logits(states[part], model)[:, :vocabulary]  # (c, V) float32, c <= CHUNK
            derivative = _derivative(logits, model)  # from the logits before they are overwritten
            logits.div_(temperature)  # in place from here on: (c, V) is the largest tensor of a training step
            logits.sub_(logits.logsumexp(-1, keepdim=True))  # log-probabilities
            logprobs[part] = logits.gather(-1, targets[part, None]).squeeze(-1)  # (c, V) -> (c,)
            if not entropy and gradients is None:
                continue
            probabilities = logits.exp()  # (c, V)
            if entropy:
                entropies[part] = -torch.einsum("nv,nv->n", probabilities, logits)  # (c,), without a (c, V) product
            if gradients is not None:
                grad_logits = probabilities.neg_()  # (c, V): d logprob / d logits = onehot(target) - p
                grad_logits[torch.arange(len(grad_logits), device=grad_logits.device), targets[part]] += 1
                gradients[part] = (grad_logits.mul_(derivative / temperature)).to(
                    weight.dtype
                ) @ weight  # (c, V) @ (V, h)
        ctx.save_for_backward(gradients)
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradients,) = ctx.saved_tensors
        # (N, 1) * (N, h): each state affects the log-probability of its own target only
        return (grad[:, None] * gradients).to(gradients.dtype), None, None, None, None, None


def vocabulary_logits(states: Tensor, model: PreTrainedModel) -> Tensor:
    """Return float32 logits (N, V) of hidden states (N, h), scaled or capped where the architecture does so."""
    logits: Tensor = model.get_output_embeddings()(states).float()
    cap, scale = _cap(model), _scale(model)
    if scale != 1:
        logits.mul_(scale)  # in place: a second (N, V) tensor may not fit
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _derivative(logits: Tensor, model: PreTrainedModel) -> Tensor | float:
    """Return the derivative of the logits by the projection's output: scale (1 - (logits / cap)^2)."""
    cap, scale = _cap(model), _scale(model)
    return scale if cap is None else scale * (1 - (logits / cap) ** 2)


def _cap(model: PreTrainedModel) -> float | None:
    """Return the bound of the logits (Gemma 2), from the text config of a composite model."""
    return getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None)


def _scale(model: PreTrainedModel) -> float:
    """Return the factor of the logits (Cohere multiplies, Granite divides), from the text config."""
    config = model.config.get_text_config(decoder=True)
    return (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
