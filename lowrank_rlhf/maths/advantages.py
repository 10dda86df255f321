"""Per-token rewards, advantages and returns from the score of a response."""

import torch
from torch import Tensor

from lowrank_rlhf.maths.kl import kl_penalty
from lowrank_rlhf.maths.masking import last_true


def token_rewards(scores: Tensor, kl: Tensor, response: Tensor, kl_coef: float) -> Tensor:
    """Return each token's reward: minus its KL penalty, plus the score at the last real token (InstructGPT, eq. 2).

    Args:
        scores: (B,), the reward model's scalar for each response.
        kl: (B, T), nats per token.
        response: (B, T) bool.
        kl_coef: weight beta of the KL penalty.

    Returns (B, T), 0 outside the response.
    """
    rewards = torch.where(response, -kl_penalty(kl, kl_coef), 0.0)
    last = last_true(response)[:, None]
    return rewards.scatter_add(-1, last, scores[:, None].to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, response: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over each response (Schulman et al. 2015, eq. 16).

    Args:
        rewards: (B, T), of emitting the token at each position.
        values: (B, T), of the state before that token.
        response: (B, T) bool; each row's True positions are contiguous, and the episode ends at the last one.
        gamma: discount factor.
        lam: lambda, the decay of the eligibility.

    Returns (advantages, returns), both (B, T) and 0 outside the response; returns = advantages + values.
    """
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(running)
    for t in reversed(range(rewards.shape[-1])):
        here = response[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(here, delta + gamma * lam * running, 0.0)
        next_value = torch.where(here, values[:, t], 0.0)
        advantages[:, t] = running
    return advantages, torch.where(response, advantages + values, 0.0)


def explained_variance(values: Tensor, returns: Tensor, response: tuple[Tensor, Tensor]) -> Tensor:
    """Return 1 - Var(returns - values) / Var(returns) over response tokens: 1 is perfect, 0 a constant critic.

    `response` is the result of `Sequences.response_positions`.
    """
    real = returns[response]
    return 1 - (real - values[response]).var() / real.var().clamp(min=1e-8)
