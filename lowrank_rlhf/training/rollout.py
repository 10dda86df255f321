"""Rollout: sample responses from the policy, then score them with policy, reference, reward model and critic."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowrank_rlhf.config.ppo import PpoConfig
from lowrank_rlhf.config.schema import SampleConfig
from lowrank_rlhf.maths.advantages import explained_variance, gae, token_rewards
from lowrank_rlhf.maths.kl import k1, k3, kl_penalty
from lowrank_rlhf.maths.masking import masked_mean, masked_sum, pool, running_pool, whiten
from lowrank_rlhf.maths.sequences import Sequences, cut_minibatches, pack
from lowrank_rlhf.models.allocator import release_if_short
from lowrank_rlhf.models.generation import Response, sample_answers
from lowrank_rlhf.models.logprobs import TokenLogprobs
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.scoring import Scored, score_logprobs, score_tokens
from lowrank_rlhf.training.rewards.ensemble import Ensemble

PRIOR_TOKENS = 4
"""Tokens that the prompt's baseline weighs in the value of an unfinished response: a mean over few tokens is noisy."""


@dataclass(frozen=True)
class RewardScale:
    """Pooling of the reward head's outputs, and mean and standard deviation of the scores of SFT responses."""

    pooling: str
    mean: float
    std: float
    length: float = 0.0
    """Weight of the logarithm of a response's tokens in its score (`reward.length: use`)."""
    ensemble: Ensemble | None = None
    """Combination of several members (`reward.members`); without it, `raw` gives a score for each of them."""

    @classmethod
    def of(cls, about: Mapping[str, Any], normalize: bool = True) -> "RewardScale":
        """Return the scale in the notes on a reward adapter (`about_reward`), without `normalize` that of raw scores.

        Versions before `reward.length` wrote no weight of the length.
        """
        mean, std = (about["score_mean"], about["score_std"]) if normalize else (0.0, 1.0)
        ensemble = Ensemble.of(about["members"]) if "members" in about else None
        return cls(about["pooling"], mean, std, about.get("length_weight", 0.0), ensemble)

    def score(self, roles: Roles, batch: Sequences, *_: Any) -> Scored:
        """Return the reward model's scores of a batch, whose prompts and texts it does not need: see `Scorer`."""
        if self.ensemble is None:
            return Scored(reward_scores(roles, batch, self), {})
        members = pool(score_tokens(roles, Role.REWARD, batch), batch.response, self.pooling)  # (B, M)
        total = (self.ensemble.combined(members) - self.mean) / self.std
        return Scored(total, {}, self.ensemble.spread(members) / self.std)

    def raw(self, values: Tensor, response: Tensor) -> Tensor:
        """Return the raw score of each row, (B,), from the head's outputs and the response mask, (B, T) each."""
        scores = pool(values, response, self.pooling)
        if self.ensemble is not None:
            return self.ensemble.combined(scores)
        return scores + self.length * response.sum(-1).log() if self.length else scores

    def unfinished(self, values: Tensor, response: Tensor, baseline: Tensor) -> Tensor:
        """Return the score of the response up to each token less the `baseline`, (B,), of its prompt: (B, T).

        It is shifted and scaled. With `mean`, the baseline counts as the score of `PRIOR_TOKENS` further tokens.
        """
        count = response.cumsum(-1)  # (B, T)
        scores = running_pool(values, response, self.pooling)
        if self.length:
            scores = scores + self.length * count.clamp(min=1).log()
        penalty = self.ensemble.penalty if self.ensemble else 0.0  # the critic's head is the members' mean
        scores = (scores - penalty - self.mean) / self.std - baseline[:, None]
        return scores * count / (count + PRIOR_TOKENS) if self.pooling == "mean" else scores


@dataclass(frozen=True)
class Rollout:
    """B responses with all inputs of the update. (B, T) float32 tensors are 0 outside the response."""

    batch: Sequences
    cut: list[list[list[int]]]
    """Rows of each micro-batch of each minibatch, the same in all passes: in bfloat16 the results depend on them."""
    responses: list[Response]
    scores: Tensor
    """(B,), of the reward model or the sum of the rewards, before clipping and `missing_eos`."""
    baseline: Tensor
    """(B,), subtracted from the shaped scores before they become rewards; 0 without a baseline."""
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    kl: Tensor
    """(B,), nats per response: sum of log policy - log reference over its tokens."""
    figures: dict[str, float]

    def tensors(self) -> dict[str, Tensor]:
        """Return the scores and the tensors computed from them, by field name."""
        names = ("scores", "baseline", "logprobs", "ref_logprobs", "values", "advantages", "returns", "kl")
        return {name: getattr(self, name) for name in names}

    def problem(self) -> str | None:
        """Return a message about the first tensor with a NaN or an infinity, or None."""
        tensors = self.tensors()
        finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()
        wrong = (name for name, fine in zip(tensors, finite, strict=True) if not fine)
        return next((f"the rollout's {name} are not all finite" for name in wrong), None)

    def rows(self, index: Sequence[int]) -> "RolloutRows":
        """Select the rows that a loss needs, cut to the longest of them."""
        batch = self.batch.rows(index)
        width = batch.ids.shape[1]
        picked = torch.as_tensor(index, device=self.values.device)
        tensors = (self.logprobs, self.values, self.advantages, self.returns)
        return RolloutRows(batch, self.baseline[picked], *(tensor[picked, :width] for tensor in tensors))


@dataclass(frozen=True)
class RolloutRows:
    """Selected rows of a rollout, cut to the longest of them."""

    batch: Sequences
    baseline: Tensor
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


Score = Callable[[Sequences, Sequence[Response]], Scored]
"""Rows of prompts with responses, and these responses -> their scores."""


def collect(
    roles: Roles,
    prompts: Sequence[Sequence[int]],
    config: PpoConfig,
    sampling: SampleConfig,
    scale: RewardScale | None,
    kl_coef: float,
    seed: int,
    baseline: Tensor | None = None,
    score: Score | None = None,
) -> Rollout:
    """Sample one response to each of B prompts and compute advantages and returns.

    The log-probabilities are computed by the training forward, not taken from generation. Neighbouring prompts share a
    minibatch: pass them in random order. `baseline`, (B,), is subtracted from the shaped scores before they become
    rewards. `score` replaces the reward model. The figure `tokens_per_second` is the throughput of sampling alone.
    """
    start = time.monotonic()
    responses = [response for (response,) in sample_answers(roles, Role.POLICY, prompts, sampling, seed)]
    sampled = time.monotonic()
    batch = pack(prompts, [response.tokens for response in responses], roles.base.pad, roles.base.device)  # (B, T)
    batch = roles.with_lower_states(batch)  # (B, T, h), once for all passes here and in the update
    cut = cut_minibatches(batch.lengths(), config.minibatches, roles.base.limits.tokens, roles.group.world_size)
    parts = [part for minibatch in cut for part in minibatch]
    # On the update's micro-batches, so that the first ratio is exactly 1: bfloat16 results depend on the batch.
    policy = score_logprobs(roles, Role.POLICY, batch, sampling.temperature, entropy=True, parts=parts)  # (B, T) each
    reference = score_logprobs(roles, Role.REFERENCE, batch, sampling.temperature, parts=parts).logprobs  # (B, T)
    scored = (score or _by_reward_model(roles, scale))(batch, responses)
    scores = scored.total  # (B,)
    baseline = torch.zeros_like(scores) if baseline is None else baseline.to(scores.device)  # (B,), less variance
    outputs = score_tokens(roles, Role.CRITIC, batch)  # (B, T)
    values = token_values(outputs, batch.response, baseline, config, scale)  # (B, T): state before each response token
    kl = k1(policy.logprobs, reference)  # (B, T)
    kl_per_response = masked_sum(kl, batch.response)  # (B,)
    finished = torch.tensor([response.finished for response in responses], device=scores.device)
    shaped = shape_scores(scores, finished, config)  # (B,): `score_clip` and `missing_eos` applied
    advantages, returns = credit(shaped - baseline, kl, values, batch.response, config, kl_coef)  # (B, T) each
    objective = shaped - kl_penalty(kl_per_response, kl_coef)  # (B,)
    release_if_short()  # and after the update: tensors of sampling and training differ in size, and fragment memory
    figures = {
        **_objective_figures(policy, reference, batch, kl_per_response, scores, objective, values, returns),
        **scored.figures(),
        "objective/kl_coef": kl_coef,
        **_sampling_figures(responses, sampled - start),
        "time/scoring": time.monotonic() - sampled,
    }
    return Rollout(
        batch=batch,
        cut=cut,
        responses=responses,
        scores=scores,
        baseline=baseline,
        logprobs=policy.logprobs,
        ref_logprobs=reference,
        values=values,
        advantages=advantages,
        returns=returns,
        kl=kl_per_response,
        figures=figures,
    )


def _by_reward_model(roles: Roles, scale: RewardScale | None) -> Score:
    assert scale is not None  # noqa: S101 - without other rewards there is a reward model
    return lambda batch, _: scale.score(roles, batch)


def _objective_figures(
    policy: TokenLogprobs,
    reference: Tensor,
    batch: Sequences,
    kl: Tensor,
    scores: Tensor,
    objective: Tensor,
    values: Tensor,
    returns: Tensor,
) -> dict[str, float]:
    """Return means over the responses, given (B, T) tensors of each token and (B,) ones of each response.

    `objective/kl` and `objective/kl_k3` estimate the same nats per response, the second one with less noise;
    `objective/rlhf_reward` is what PPO maximises, the shaped score less the KL penalty.
    """
    assert policy.entropy is not None  # noqa: S101 - requested by `collect`
    figures = {
        "objective/kl": kl.mean(),
        "objective/kl_k3": masked_sum(k3(policy.logprobs, reference), batch.response).mean(),
        "objective/scores": scores.mean(),
        "objective/rlhf_reward": objective.mean(),
        "objective/entropy": masked_mean(policy.entropy, batch.response),
        "value/explained_variance": explained_variance(values, returns, batch.response_positions()),
    }
    return dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))


def reward_signal(scores: Tensor, kl: Tensor, response: Tensor, config: PpoConfig, kl_coef: float) -> Tensor:
    """Return each token's reward, (B, T), scaled to variance 1 where the config says so."""
    rewards = token_rewards(scores, kl, response, kl_coef)
    return whiten(rewards, response, shift_mean=False) if config.whiten_rewards else rewards


def credit(
    scores: Tensor, kl: Tensor, values: Tensor, response: Tensor, config: PpoConfig, kl_coef: float
) -> tuple[Tensor, Tensor]:
    """Compute advantages and returns, (B, T), from scores, (B,), and the KL and value of each token, (B, T).

    Rewards and advantages are whitened over the response where the config says so (arXiv 2403.17031, detail 18).
    """
    rewards = reward_signal(scores, kl, response, config, kl_coef)
    advantages, returns = gae(rewards, values, response, config.gamma, config.gae_lambda)
    return whiten(advantages, response) if config.whiten_advantages else advantages, returns


def _sampling_figures(responses: Sequence[Response], seconds: float) -> dict[str, float]:
    tokens = sum(len(response.tokens) for response in responses)
    return {**response_figures(responses), "tokens_per_second": tokens / seconds, "time/sampling": seconds}


def response_figures(responses: Sequence[Response]) -> dict[str, float]:
    """Return response lengths in tokens, and the share of responses that end with EOS."""
    lengths = torch.tensor([len(response.tokens) for response in responses], dtype=torch.float32)
    finished = sum(response.finished for response in responses)
    return {
        "response/length_mean": float(lengths.mean()),
        "response/length_p95": float(lengths.quantile(0.95)),
        "response/eos_rate": finished / len(responses),
    }


def reward_scores(roles: Roles, batch: Sequences, scale: RewardScale) -> Tensor:
    """Return the reward model's score of each row, (B,), shifted and scaled as given."""
    scores = scale.raw(score_tokens(roles, Role.REWARD, batch), batch.response)
    return (scores - scale.mean) / scale.std


def shape_scores(scores: Tensor, finished: Tensor, config: PpoConfig) -> Tensor:
    """Clip scores and apply `missing_eos` to unfinished responses: (B,), (B,) bool -> (B,)."""
    if config.score_clip is not None:
        scores = scores.clamp(-config.score_clip, config.score_clip)
    if config.missing_eos == "replace":
        return torch.where(finished, scores, config.missing_eos_score)
    if config.missing_eos == "penalty":
        return torch.where(finished, scores, scores + config.missing_eos_score)
    return scores


def token_values(
    head_output: Tensor, response: Tensor, baseline: Tensor, config: PpoConfig, scale: RewardScale | None
) -> Tensor:
    """Return the critic's value of the state before each response token: (B, T), 0 elsewhere.

    A critic that starts as the reward model scores the response so far in the same way: the reward model's pooling and
    scale, less the `baseline`, (B,), times its weight in `ppo.rewards` (with which there is no baseline). One that
    starts at zero reads its head's output, (B, T), as the value.
    """
    if config.critic_head == "reward" and scale:
        head_output = config.reward_model_weight * scale.unfinished(head_output, response, baseline)
    return values_before_tokens(head_output, response)


def values_before_tokens(head_output: Tensor, response: Tensor) -> Tensor:
    """Shift the head's output by one: the state before token t is read at position t - 1. (B, T) -> (B, T)."""
    shifted = torch.cat([torch.zeros_like(head_output[:, :1]), head_output[:, :-1]], -1)
    return torch.where(response, shifted, 0.0)
