"""Losses of PPO and of the reward model."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def policy_losses(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_range: float, upper_clip: float | None = None
) -> Tensor:
    """Return PPO's clipped surrogate, negated, per token (Schulman et al. 2017, eq. 7). Any equal shapes.

    `upper_clip` replaces `clip_range` above 1 (clip-higher, Yu et al. 2025, arXiv 2503.14476, eq. 8).
    """
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + (clip_range if upper_clip is None else upper_clip))
    return torch.maximum(-advantages * ratio, -advantages * clipped)


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """Return half the larger squared error of the value and of the value clipped around the rollout's, per token.

    Source: "The N implementation details of RLHF with PPO" (2023), after OpenAI's lm-human-preferences.
    """
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def pairwise_loss(
    chosen: Tensor, rejected: Tensor, margins: Tensor | float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Return -log sigmoid(r_chosen - r_rejected - margin), the mean over the pairs of a prompt: (P,), (P,) -> ().

    `weights`, (P,), multiply the pairs' losses; they are not normalised.

    Bradley-Terry with all pairs of a prompt as one element, divided by their number (InstructGPT, eq. 1);
    the margin is Llama 2's (arXiv 2307.09288, eq. 2).
    """
    losses = -logsigmoid(chosen - rejected - margins)  # (P,)
    return (losses if weights is None else weights * losses).mean()


def plackett_luce_loss(scores: Tensor, tiers: Sequence[Sequence[int]]) -> Tensor:
    """Return the negative log-likelihood of a ranking per choice: -mean_k [r_k - logsumexp over k and all below it].

    Args:
        scores: (K,), of the answers.
        tiers: indices into `scores`, best tier first. Answers of one tier don't compete with each other,
            so at K = 2 the loss is the pairwise one, and a single tier costs nothing.

    Divided by the number of choices, which are the answers above the last tier, as the pairwise loss is by its pairs: a
    prompt with many answers does not dominate a batch, and one learning rate suits both losses.

    Source: Plackett 1975; Luce 1959. Returns a scalar.
    """
    loss, choices = scores.new_zeros(()), 0
    for position, tier in enumerate(tiers[:-1]):
        below = [index for lower in tiers[position + 1 :] for index in lower]
        for index in tier:
            loss = loss + torch.logsumexp(scores[[index, *below]], 0) - scores[index]
            choices += 1
    return loss / max(1, choices)
