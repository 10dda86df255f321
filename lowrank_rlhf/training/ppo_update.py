"""PPO's update: epochs over one rollout, with a policy step and a critic step for every minibatch."""

import time
from dataclasses import dataclass, field
from functools import partial

import torch

from lowrank_rlhf.config.ppo import PpoConfig
from lowrank_rlhf.maths.kl import k3
from lowrank_rlhf.maths.losses import policy_losses, value_losses
from lowrank_rlhf.maths.masking import masked_mean, masked_sum
from lowrank_rlhf.models.allocator import release_if_short
from lowrank_rlhf.models.precision import sum_dtype
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.scoring import score_logprobs
from lowrank_rlhf.training.optimizer_step import NotFinite, all_reduce_gradients, clip_gradients, finite_step
from lowrank_rlhf.training.rollout import RewardScale, Rollout, token_values

_POLICY_FIGURES = ("approxkl", "clipfrac", "ratio", "loss")
_STEPS_TAKEN, _FINAL_KL = "policy/optimizer_steps", "policy/final_approxkl"


@dataclass(frozen=True)
class Optimizers:
    """Adam optimizers of policy and critic."""

    policy: torch.optim.Optimizer
    critic: torch.optim.Optimizer

    @classmethod
    def create(cls, roles: Roles, config: PpoConfig) -> "Optimizers":
        """Create both, with the configured learning rates."""
        kind = partial(torch.optim.Adam, eps=config.adam_epsilon, fused=roles.base.device.type == "cuda")
        return cls(
            kind(roles.parameters(Role.POLICY), lr=config.learning_rate),
            kind(roles.parameters(Role.CRITIC), lr=config.critic_learning_rate),
        )

    @property
    def of_roles(self) -> dict[Role, torch.optim.Optimizer]:
        """Optimizers by the role that they train."""
        return {Role.POLICY: self.policy, Role.CRITIC: self.critic}

    def schedule(self, config: PpoConfig, step: int, rate: float = 1.0) -> None:
        """Set the learning rates of a step: linear warm-up times linear decay to 0 after the last step.

        `rate` scales both; it is below 1 after a roll-back.
        """
        share = rate * min(1.0, (step + 1) / (config.warmup_steps + 1)) * (1 - step / config.steps)
        self.policy.param_groups[0]["lr"] = config.learning_rate * share
        self.critic.param_groups[0]["lr"] = config.critic_learning_rate * share


@dataclass
class OptimizerSteps:
    """Progress of an update in optimizer steps, of the policy or of the critic."""

    done: int = 0
    figures: dict[str, list[float]] = field(default_factory=dict)
    """Figures of the steps so far, in order."""
    problem: str | None = None
    """Value that was not finite in the last skipped step."""

    def add(self, figures: dict[str, float]) -> None:
        """Count one more step, with these figures."""
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)
        self.done += 1

    @property
    def skipped(self) -> int:
        """Number of steps that moved no weight."""
        return int(sum(self.figures.get("skipped", ())))

    @property
    def role_skipped(self) -> bool:
        """True if all steps of one of the roles were skipped."""
        losses = {"time/policy_update": "policy/loss", "time/critic_update": "value/loss"}
        return any(step in self.figures and loss not in self.figures for step, loss in losses.items())

    def summary(self) -> dict[str, float]:
        """Return the figures' means; seconds, `skipped` and the policy's steps as sums."""
        summed = ("time/", "skipped", _STEPS_TAKEN)
        return {name: sum(v) / (1 if name.startswith(summed) else len(v)) for name, v in self.figures.items()}


def update(
    roles: Roles,
    optimizers: Optimizers,
    rollout: Rollout,
    config: PpoConfig,
    scale: RewardScale | None,
    temperature: float,
    seed: int,
    train_policy: bool = True,
    steps: OptimizerSteps | None = None,
) -> dict[str, float]:
    """Train policy and critic on a rollout (Schulman et al. 2017, algorithm 1); return the figures' means, and seconds.

    Every epoch takes the minibatches in a new order. After an exception `steps` contains the completed optimizer steps;
    called again with it, the update ends as if it had not been interrupted.

    With `target_kl`, the first minibatch on which the approximate KL to the sampling policy exceeds it ends the
    policy's steps on this rollout, its own step included; the critic takes all of its steps. `policy/optimizer_steps`
    counts the policy's, and `policy/final_approxkl` is the approximate KL after the last one, over the whole rollout.

    `policy/first_ratio_error` is the largest |ratio - 1| on the first minibatch, before the policy has moved. An
    optimizer step with a NaN or an infinity is skipped: it moves no weight, and `steps.problem` names the value.
    """
    steps = OptimizerSteps() if steps is None else steps
    learners = (Role.POLICY, Role.CRITIC) if train_policy else (Role.CRITIC,)
    generator = torch.Generator().manual_seed(seed)
    # All epochs' orders are drawn at once, so that a resumed update sees the same ones.
    order = [torch.randperm(len(rollout.cut), generator=generator).tolist() for _ in range(config.epochs)]
    plan = [(role, index) for epoch in order for index in epoch for role in learners]
    while steps.done < len(plan):
        role, index = plan[steps.done]
        if role is Role.POLICY and _reached_target_kl(steps, config):
            steps.done += 1
            continue
        start = time.monotonic()
        try:
            if role is Role.POLICY:
                figures = _policy_step(roles, optimizers.policy, rollout, rollout.cut[index], config, temperature)
            else:
                figures = _critic_step(roles, optimizers.critic, rollout, rollout.cut[index], config, scale)
        except NotFinite as error:
            figures, steps.problem = {}, str(error)
        ratio_error = figures.pop("policy/largest_ratio_error", None)
        if ratio_error is not None and "policy/first_ratio_error" not in steps.figures:
            figures["policy/first_ratio_error"] = ratio_error
        seconds = {f"time/{role.name.lower()}_update": time.monotonic() - start}
        steps.add({**figures, **seconds, "skipped": float(not figures)})
    if any(steps.figures.get(_STEPS_TAKEN, ())) and _FINAL_KL not in steps.figures:
        start = time.monotonic()
        steps.figures[_FINAL_KL] = [_approximate_kl(roles, rollout, temperature)]
        steps.figures["time/policy_update"].append(time.monotonic() - start)
    release_if_short()
    return {"time/policy_update": 0.0} | steps.summary()


def _reached_target_kl(steps: OptimizerSteps, config: PpoConfig) -> bool:
    """Return True if the policy's last minibatch found it further than `target_kl` from the sampling policy."""
    kl = steps.figures.get("policy/approxkl")
    return kl is not None and _beyond_target(kl[-1], config)


def _beyond_target(approximate_kl: float, config: PpoConfig) -> bool:
    return config.target_kl is not None and approximate_kl > config.target_kl


def _approximate_kl(roles: Roles, rollout: Rollout, temperature: float) -> float:
    """Return the mean over the rollout's response tokens of the k3 estimate of KL(sampling policy || policy now)."""
    parts = [part for minibatch in rollout.cut for part in minibatch]
    logprobs = score_logprobs(roles, Role.POLICY, rollout.batch, temperature, parts=parts).logprobs  # (B, T)
    return float(masked_mean(k3(rollout.logprobs, logprobs), rollout.batch.response))


def _policy_step(
    roles: Roles,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    minibatch: list[list[int]],
    config: PpoConfig,
    temperature: float,
) -> dict[str, float]:
    """Take one optimizer step of the policy on a minibatch, given as the rows of each micro-batch.

    No weight moves if the approximate KL of the minibatch exceeds `target_kl`.
    """
    optimizer.zero_grad()  # also drops the gradients of an interrupted step
    tokens = _response_tokens(rollout, minibatch)  # of all processes: micro-batch losses add up to the mean per token
    sums = torch.zeros(len(_POLICY_FIGURES), device=rollout.values.device)  # (4,)
    # all_reduce only adds, so the maximum has one element per process.
    largest = torch.zeros(roles.group.world_size, device=rollout.values.device)  # (world_size,)
    rank = roles.group.rank
    with roles.acting_as(Role.POLICY, train=True):
        for part in map(rollout.rows, roles.group.shard(minibatch)):  # b rows, T positions of the longest of them
            logprobs = roles.logprobs(part.batch, temperature).logprobs  # (b, T), 0 outside the response
            clips = (config.clip_range, config.upper_clip)
            losses = policy_losses(logprobs, part.logprobs, part.advantages, *clips)  # (b, T)
            loss = masked_sum(losses, part.batch.response).sum() / tokens  # scalar
            roles.backward(loss)  # adds to the gradients of the micro-batches before
            with torch.no_grad():
                ratio = (logprobs - part.logprobs).exp()  # (b, T)
                error = (ratio - 1).abs()  # (b, T)
                clipped = (error > torch.where(ratio > 1, config.upper_clip, config.clip_range)).float()
                # k3 of sampling policy and policy; in the order of _POLICY_FIGURES, (b, T) each
                figures = (k3(part.logprobs, logprobs), clipped, ratio, losses)
                sums += torch.stack([masked_sum(values, part.batch.response).sum() / tokens for values in figures])
                # 0 outside the response; torch.maximum keeps a NaN, which Python's max() would drop
                largest[rank] = torch.maximum(largest[rank], error.where(part.batch.response, 0.0).max())
    all_reduce_gradients(roles.group, optimizer, sums, largest)
    norm = clip_gradients(optimizer, config.max_grad_norm)
    *found, most, grad_norm = torch.cat([sums, largest.max()[None], norm[None]]).tolist()  # one wait for the device
    means = dict(zip(_POLICY_FIGURES, found, strict=True))
    named = {**means, "largest_ratio_error": most}
    if _beyond_target(means["approxkl"], config):
        optimizer.zero_grad()
        named |= {"optimizer_steps": 0.0}
    else:
        finite_step(optimizer, "policy", means["loss"], grad_norm)
        named |= {"grad_norm": grad_norm, "optimizer_steps": 1.0}
    return {f"policy/{name}": value for name, value in named.items()}


def _critic_step(
    roles: Roles,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    minibatch: list[list[int]],
    config: PpoConfig,
    scale: RewardScale | None,
) -> dict[str, float]:
    """Take one optimizer step of the critic on a minibatch, given as the rows of each micro-batch."""
    optimizer.zero_grad()  # also drops the gradients of an interrupted step
    tokens = _response_tokens(rollout, minibatch)
    device = rollout.values.device
    total = torch.zeros((), dtype=sum_dtype(device), device=device)
    with roles.acting_as(Role.CRITIC, train=True):
        for part in map(rollout.rows, roles.group.shard(minibatch)):  # b rows, T positions of the longest of them
            outputs = roles.scores(part.batch)  # (b, T): head output after each token
            # (b, T): state before each response token
            values = token_values(outputs, part.batch.response, part.baseline, config, scale)
            # part.values are the critic's before the update: the new ones are clipped to a range around them
            losses = value_losses(values, part.values, part.returns, config.value_clip_range)  # (b, T)
            loss = masked_sum(losses, part.batch.response).sum() / tokens  # scalar
            roles.backward(config.value_coef * loss)
            total += loss.detach()
    all_reduce_gradients(roles.group, optimizer, total)
    mean, norm = torch.stack([total, clip_gradients(optimizer, config.max_grad_norm).to(total)]).tolist()
    finite_step(optimizer, "critic", mean, norm)
    return {"value/loss": mean, "value/grad_norm": norm}


def _response_tokens(rollout: Rollout, minibatch: list[list[int]]) -> int:
    return sum(rollout.batch.host_counts[row][1] for part in minibatch for row in part)
