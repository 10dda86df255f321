"""Epochs over one rollout: a policy pass and a critic pass for every minibatch."""

import time
from dataclasses import dataclass, field

import torch

from lowrank_rlhf.config.ppo import PpoConfig
from lowrank_rlhf.maths.kl import k3
from lowrank_rlhf.maths.losses import policy_losses, value_losses
from lowrank_rlhf.maths.masking import masked_sum
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.training.optimizer_step import NotFinite, all_reduce_gradients, clipped_step
from lowrank_rlhf.training.rollout import Rollout, values_before_tokens

_POLICY_FIGURES = ("approxkl", "clipfrac", "ratio", "loss")


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

    @property
    def of_roles(self) -> dict[Role, torch.optim.Optimizer]:
        """Each with the role that it trains."""
        return {Role.POLICY: self.policy, Role.CRITIC: self.critic}

    def schedule(self, config: PpoConfig, step: int, rate: float = 1.0) -> None:
        """Set the rates of this step: a linear warm-up times a linear decay that ends at 0 after the last step.

        `rate` is the share of the configured rates that is used.
        """
        share = rate * min(1.0, (step + 1) / (config.warmup_steps + 1)) * (1 - step / config.steps)
        self.policy.param_groups[0]["lr"] = config.learning_rate * share
        self.critic.param_groups[0]["lr"] = config.critic_learning_rate * share


@dataclass
class Turns:
    """How far an update has come. A turn is one optimiser step, of the policy or of the critic."""

    done: int = 0
    figures: dict[str, list[float]] = field(default_factory=dict)
    """Each turn's figures so far, in order."""
    problem: str | None = None
    """What was not finite in the last turn that was skipped."""

    def note(self, found: dict[str, float]) -> None:
        """One more turn is done, with these figures."""
        for name, value in found.items():
            self.figures.setdefault(name, []).append(value)
        self.done += 1

    @property
    def skipped(self) -> int:
        """How many turns moved no weight."""
        return int(sum(self.figures.get("skipped", ())))

    @property
    def lost(self) -> bool:
        """True where a role had turns and all of them were skipped."""
        losses = {"time/policy_update": "policy/loss", "time/critic_update": "value/loss"}
        return any(turn in self.figures and loss not in self.figures for turn, loss in losses.items())

    def summary(self) -> dict[str, float]:
        """The figures' means, the sums of seconds, and how many turns were `skipped`."""
        summed = ("time/", "skipped")
        return {name: sum(v) / (1 if name.startswith(summed) else len(v)) for name, v in self.figures.items()}


def update(
    roles: Roles,
    optimizers: Optimizers,
    rollout: Rollout,
    config: PpoConfig,
    temperature: float,
    seed: int,
    train_policy: bool = True,
    turns: Turns | None = None,
) -> dict[str, float]:
    """PPO's passes over the rollout (Schulman et al. 2017, algorithm 1); the means of its figures, and seconds.

    Every pass takes the minibatches in a new order. An exception leaves `turns` at the turn that it broke off, before
    any weight moved in it: with these turns the next call goes on from there and ends as if nothing had happened.

    `policy/first_ratio_error` is the largest |ratio - 1| on the first minibatch, where the policy has not moved yet.
    A turn that a NaN or an infinity would enter is skipped: it moves no weight, and `turns.problem` says what it was.
    """
    turns = Turns() if turns is None else turns
    learners = (Role.POLICY, Role.CRITIC) if train_policy else (Role.CRITIC,)
    generator = torch.Generator().manual_seed(seed)
    order = [torch.randperm(len(rollout.cut), generator=generator).tolist() for _ in range(config.epochs)]
    plan = [(role, index) for epoch in order for index in epoch for role in learners]
    while turns.done < len(plan):
        if turns.done % (len(plan) // config.epochs) == 0 and _far_enough(turns, config):
            break
        role, index = plan[turns.done]
        start = time.monotonic()
        try:
            if role is Role.POLICY:
                found = _policy_step(roles, optimizers.policy, rollout, rollout.cut[index], config, temperature)
            else:
                found = _critic_step(roles, optimizers.critic, rollout, rollout.cut[index], config)
        except NotFinite as error:
            found, turns.problem = {}, str(error)
        first = found.pop("policy/largest_ratio_error", None)
        if first is not None and "policy/first_ratio_error" not in turns.figures:
            found["policy/first_ratio_error"] = first
        seconds = {f"time/{role.name.lower()}_update": time.monotonic() - start}
        turns.note({**found, **seconds, "skipped": float(not found)})
    return {"time/policy_update": 0.0} | turns.summary()


def _far_enough(turns: Turns, config: PpoConfig) -> bool:
    """True where the last policy turn found it too far from the policy that sampled."""
    found = turns.figures.get("policy/approxkl")
    return config.target_kl is not None and found is not None and found[-1] > config.target_kl


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
    sums = torch.zeros(len(_POLICY_FIGURES), device=rollout.values.device)
    largest = torch.zeros(roles.group.world_size, device=rollout.values.device)
    rank = roles.group.rank
    with roles.acting_as(Role.POLICY, train=True):
        for part in map(rollout.rows, roles.group.shard(minibatch)):
            logprobs = roles.logprobs(part.batch, temperature).logprobs
            losses = policy_losses(logprobs, part.logprobs, part.advantages, config.clip_range)
            loss = masked_sum(losses, part.batch.response).sum() / tokens
            roles.backward(loss)
            with torch.no_grad():
                ratio = (logprobs - part.logprobs).exp()
                off = (ratio - 1).abs()
                counted = (k3(part.logprobs, logprobs), (off > config.clip_range).float(), ratio, losses)
                sums += torch.stack([masked_sum(values, part.batch.response).sum() / tokens for values in counted])
                # NaN stays NaN; max() would drop it
                largest[rank] = torch.maximum(largest[rank], off[part.batch.response].max())
    all_reduce_gradients(roles.group, optimizer, sums, largest)
    means = dict(zip(_POLICY_FIGURES, sums.tolist(), strict=True))
    norm = clipped_step(optimizer, "policy", means["loss"], config.max_grad_norm)
    found = {**means, "grad_norm": norm, "largest_ratio_error": float(largest.max())}
    return {f"policy/{name}": value for name, value in found.items()}


def _critic_step(
    roles: Roles, optimizer: torch.optim.Optimizer, rollout: Rollout, minibatch: list[list[int]], config: PpoConfig
) -> dict[str, float]:
    optimizer.zero_grad()
    tokens = _response_tokens(rollout, minibatch)
    total = torch.zeros((), dtype=torch.float64, device=rollout.values.device)
    with roles.acting_as(Role.CRITIC, train=True):
        for part in map(rollout.rows, roles.group.shard(minibatch)):
            values = values_before_tokens(roles.scores(part.batch), part.batch.response)
            losses = value_losses(values, part.values, part.returns, config.value_clip_range)
            loss = masked_sum(losses, part.batch.response).sum() / tokens
            roles.backward(config.value_coef * loss)
            total += loss.detach()
    all_reduce_gradients(roles.group, optimizer, total)
    norm = clipped_step(optimizer, "critic", float(total), config.max_grad_norm)
    return {"value/loss": float(total), "value/grad_norm": norm}


def _response_tokens(rollout: Rollout, minibatch: list[list[int]]) -> int:
    return sum(int(rollout.batch.response[part].sum()) for part in minibatch)
