"""Epochs over one rollout: a policy pass and a critic pass for every minibatch."""

import time
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_rlhf.config.ppo import PpoConfig
from lowrank_rlhf.maths.kl import k3
from lowrank_rlhf.maths.losses import policy_losses, value_losses
from lowrank_rlhf.maths.masking import masked_sum
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.stepping import clipped_step
from lowrank_rlhf.ppo.rollout import Rollout, values_before_tokens


@dataclass(frozen=True)
class Optimizers:
    """Adam for the policy's weights and for the critic's."""

    policy: torch.optim.Optimizer
    critic: torch.optim.Optimizer

    @classmethod
    def create(cls, roles: Roles, config: PpoConfig) -> "Optimizers":
        """Fresh ones, with the configured rates."""
        return cls(
            torch.optim.Adam(roles.parameters(Role.POLICY), lr=config.learning_rate, eps=config.adam_epsilon),
            torch.optim.Adam(roles.parameters(Role.CRITIC), lr=config.critic_learning_rate, eps=config.adam_epsilon),
        )

    def schedule(self, config: PpoConfig, step: int) -> None:
        """Set the rates of this step: a linear warm-up times a linear decay that ends at 0 after the last step."""
        share = min(1.0, (step + 1) / (config.warmup_steps + 1)) * (1 - step / config.steps)
        self.policy.param_groups[0]["lr"] = config.learning_rate * share
        self.critic.param_groups[0]["lr"] = config.critic_learning_rate * share


def update(
    roles: Roles,
    optimizers: Optimizers,
    rollout: Rollout,
    config: PpoConfig,
    temperature: float,
    seed: int,
    train_policy: bool = True,
) -> dict[str, float]:
    """PPO's passes over the rollout (Schulman et al. 2017, algorithm 1); the means of its figures, and seconds.

    Every pass takes the minibatches in a new order.

    `policy/first_ratio_error` is the largest |ratio - 1| on the first minibatch, where the policy has not moved yet.
    Raises `NotFinite` before a step that a NaN or an infinity would enter.
    """
    figures: dict[str, list[float]] = defaultdict(list)
    seconds = {"time/policy_update": 0.0, "time/critic_update": 0.0}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(config.epochs):
        for index in torch.randperm(len(rollout.cut), generator=generator).tolist():
            minibatch = rollout.cut[index]
            start = time.monotonic()
            if train_policy:
                found = _policy_step(roles, optimizers.policy, rollout, minibatch, config, temperature)
                if "policy/first_ratio_error" not in figures:
                    figures["policy/first_ratio_error"].append(found["largest_ratio_error"])
                for name in ("approxkl", "clipfrac", "ratio", "loss", "grad_norm"):
                    figures[f"policy/{name}"].append(found[name])
            between = time.monotonic()
            for name, value in _critic_step(roles, optimizers.critic, rollout, minibatch, config).items():
                figures[f"value/{name}"].append(value)
            seconds["time/policy_update"] += between - start
            seconds["time/critic_update"] += time.monotonic() - between
        if config.target_kl is not None and train_policy and figures["policy/approxkl"][-1] > config.target_kl:
            break
    return {name: sum(values) / len(values) for name, values in figures.items()} | seconds


def _policy_step(
    roles: Roles,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    minibatch: list[list[int]],
    config: PpoConfig,
    temperature: float,
) -> dict[str, float]:
    optimizer.zero_grad()
    tokens = _response_tokens(rollout, minibatch)
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=rollout.values.device))
    largest = torch.zeros((), device=rollout.values.device)
    for part in map(rollout.rows, minibatch):
        with roles.acting_as(Role.POLICY, train=True):
            logprobs = roles.logprobs(part.batch, temperature).logprobs
            losses = policy_losses(logprobs, part.logprobs, part.advantages, config.clip_range)
            loss = masked_sum(losses, part.batch.response).sum() / tokens
            roles.backward(loss)
        with torch.no_grad():
            ratio = (logprobs - part.logprobs).exp()
            off = (ratio - 1).abs()
            counted = {
                "approxkl": k3(part.logprobs, logprobs),
                "clipfrac": (off > config.clip_range).float(),
                "ratio": ratio,
            }
            for name, values in counted.items():
                sums[name] += masked_sum(values, part.batch.response).sum() / tokens
            sums["loss"] += loss.detach()
            largest = torch.maximum(largest, off[part.batch.response].max())  # NaN stays NaN; max() would drop it
    means = {name: float(value) for name, value in sums.items()}
    norm = clipped_step(optimizer, "policy", means["loss"], config.max_grad_norm)
    return {**means, "grad_norm": norm, "largest_ratio_error": float(largest)}


def _critic_step(
    roles: Roles, optimizer: torch.optim.Optimizer, rollout: Rollout, minibatch: list[list[int]], config: PpoConfig
) -> dict[str, float]:
    optimizer.zero_grad()
    tokens = _response_tokens(rollout, minibatch)
    total = 0.0
    for part in map(rollout.rows, minibatch):
        with roles.acting_as(Role.CRITIC, train=True):
            values = values_before_tokens(roles.scores(part.batch), part.batch.response)
            losses = value_losses(values, part.values, part.returns, config.value_clip_range)
            loss = masked_sum(losses, part.batch.response).sum() / tokens
            roles.backward(config.value_coef * loss)
        total += loss.item()
    return {"loss": total, "grad_norm": clipped_step(optimizer, "critic", total, config.max_grad_norm)}


def _response_tokens(rollout: Rollout, minibatch: list[list[int]]) -> int:
    return sum(int(rollout.batch.response[part].sum()) for part in minibatch)
