"""Settings of PPO."""

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lowrank_rlhf.config.rewards import ENDPOINT, MODEL, RewardTerm, with_reward_model
from lowrank_rlhf.config.section import Conflict, Count, Fraction, NonNegative, Rate, Section

APPROXIMATE_KL_LIMIT = 0.02
"""Nats per token that a policy may move on one rollout: default of `ppo.target_kl`, and limit of the alarm."""


class PpoConfig(Section):
    """Stage 3: PPO against the reward model with a KL penalty towards the SFT model."""

    steps: Count = 50
    """Number of rollouts, each followed by an update."""
    batch_size: Count = 64
    """Prompts per rollout. Papers use 512 (Ouyang et al. 2022, Huang et al. 2024); 64 fits a small GPU's time."""
    epochs: Count = 4
    """Passes over each rollout: 4 in Huang et al. 2024. With 1 pass of 1 minibatch every ratio is 1, nothing is
    clipped, and the update is a plain policy gradient."""
    minibatches: Count = 1
    """Optimiser steps per pass: 1 in Huang et al. 2024, 8 with 1 pass in Ouyang et al. 2022; must divide the batch
    size."""
    learning_rate: Rate = 5e-5
    """Peak learning rate of the policy adapter, with linear decay."""
    critic_learning_rate: Rate = 1e-4
    """Peak learning rate of the critic adapter and its head, with linear decay."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Warm-up steps of both learning rates: without them Adam starts with full-size steps on noisy gradients."""
    critic_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Initial steps in which only the critic is trained."""
    critic_head: Literal["reward", "zero"] = "reward"
    """Initial head of the critic, on a copy of the reward adapter. With `reward` the critic starts as the reward model:
    the value of an unfinished response is its score so far. With `zero` it starts knowing nothing; the default without
    a reward model, then on a copy of the SFT adapter."""
    kl_coef: NonNegative = 0.05
    """Weight beta of the KL penalty; with `kl_controller: adaptive` its initial value, by default 0.15."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive` adjusts beta to keep the KL per response near `kl_target` (Ziegler et al. 2019)."""
    kl_target: Annotated[float, Field(gt=0)] = 6.0
    """Target KL of the adaptive controller, in nats per response."""
    kl_horizon: Count = 10_000
    """Horizon of the adaptive controller, in responses."""
    gamma: Fraction = 1.0
    """Discount per token."""
    gae_lambda: Fraction = 0.95
    """Lambda of generalised advantage estimation."""
    whiten_advantages: bool = True
    """Shift and scale advantages to mean 0 and variance 1 over the rollout's response tokens."""
    whiten_rewards: bool = False
    """Scale the per-token rewards to variance 1 before GAE, keeping their mean."""
    clip_range: Annotated[float, Field(gt=0)] = 0.2
    """Clip the probability ratio to 1 plus or minus this."""
    clip_high: Annotated[float, Field(gt=0)] | None = None
    """Clip the ratio at 1 plus this from above instead: with more than `clip_range`, unlikely tokens may gain faster
    than they may lose, which keeps entropy (clip-higher, 0.28 beside 0.2 in DAPO, Yu et al. 2025)."""
    value_clip_range: Annotated[float, Field(gt=0)] = 0.2
    """In the value loss, clip values to those of the rollout plus or minus this."""
    value_coef: Annotated[float, Field(gt=0)] = 0.1
    """Weight of the value loss."""
    target_kl: Annotated[float, Field(gt=0)] | None = APPROXIMATE_KL_LIMIT
    """Once a minibatch finds the policy further than this from the sampling policy (approximate KL in nats per token),
    skip the policy's remaining steps on the rollout; the critic completes its own. Healthy runs usually stay below 0.02
    (Huang et al. 2022)."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm, separately for policy and critic."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-5
    """Adam's epsilon."""
    rewards: dict[str, RewardTerm] = Field(default={})
    """Rewards by your names for them; the policy is trained on their weighted sum, with `rloo` and `grpo` too. By
    default it is the reward model alone; without it, the stages sample, rank and reward do not run."""
    normalize_score: bool = True
    """Shift and scale the reward model's scores by their mean and standard deviation on SFT responses."""
    contrastive: bool = False
    """Subtract from each score the mean score of the ranked answers to the same prompt (Shen et al. 2024): the rest is
    the improvement over the SFT model, with less variance. Only ranked prompts are used."""
    score_clip: Annotated[float, Field(gt=0)] | None = 5.0
    """Clip scores to plus or minus this."""
    missing_eos: Literal["replace", "penalty", "keep"] = "replace"
    """For an unfinished response: `replace` its score by `missing_eos_score`, add that as a `penalty`, or `keep` it."""
    missing_eos_score: float = -6.0
    """Score (`replace`), or amount added to the score (`penalty`), of an unfinished response. The default is 1 below
    the lowest score that `score_clip` leaves, so no endless answer beats one that ends; at -1 (Huang et al. 2024) it
    beats 21 % of the SFT model's own answers, as measured here."""
    evaluate_every: Count = 10
    """Steps between evaluations on validation prompts."""
    evaluate_prompts: Count = 128
    """Maximum number of validation prompts per evaluation. The mean objective's standard error is 0.25 with 32 prompts
    and 0.125 with 128, as measured here."""
    save_every: Count = 10
    """Steps between checkpoints."""
    accept_weak_reward: bool = False
    """Train even if the reward model is not shown to be better than chance and than preferring longer (or shorter)
    answers."""

    @model_validator(mode="before")
    @classmethod
    def _missing_eos_below_clip(cls, settings: Any) -> Any:
        """Default to a `missing_eos_score` of 1 below the lowest clipped score."""
        clip = settings.get("score_clip") if isinstance(settings, dict) else None
        if isinstance(clip, int | float):
            return {"missing_eos_score": -clip - 1.0, **settings}
        return settings

    @model_validator(mode="before")
    @classmethod
    def _adaptive_starts_higher(cls, settings: Any) -> Any:
        """Default to an initial beta of 0.15 with an adaptive controller, like the code of Ziegler et al. 2019."""
        if isinstance(settings, dict) and settings.get("kl_controller") == "adaptive":
            return {"kl_coef": 0.15, **settings}
        return settings

    @model_validator(mode="before")
    @classmethod
    def _critic_without_reward_model(cls, settings: Any) -> Any:
        """Default to a critic with a head of zeros if there is no reward model to start as."""
        if isinstance(settings, dict) and not with_reward_model(settings.get("rewards")):
            return {"critic_head": "zero", **settings}
        return settings

    @field_validator("rewards")
    @classmethod
    def _named(cls, rewards: dict[str, RewardTerm]) -> dict[str, RewardTerm]:
        if wrong := [name for name in rewards if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,31}", name)]:
            shown = json.dumps(wrong[0], ensure_ascii=False)
            raise ValueError(f"{shown} is not a name: up to 32 letters, digits and _, a letter first")
        return rewards

    @property
    def upper_clip(self) -> float:
        """Distance from 1 at which a growing ratio is clipped."""
        return self.clip_range if self.clip_high is None else self.clip_high

    @property
    def uses_reward_model(self) -> bool:
        """False if the policy is trained on other rewards only."""
        return with_reward_model({name: {"source": term.source} for name, term in self.rewards.items()})

    @property
    def reward_model_weight(self) -> float:
        """Factor of the reward model's score in what the policy is trained on; 1 if it is alone."""
        return next((term.weight for term in self.rewards.values() if term.source == MODEL), 1.0)

    @property
    def asking_endpoint(self) -> list[str]:
        """Names of the rewards that ask the model at `rank.endpoint`."""
        return [name for name, term in self.rewards.items() if term.source == ENDPOINT]

    def conflicts(self) -> Iterator[Conflict]:
        """Yield minibatches that do not divide the batch, and a critic warm-up that never trains the policy."""
        if self.batch_size % self.minibatches:
            text = f"minibatches ({self.minibatches}) must divide batch_size ({self.batch_size})"
            yield Conflict(("minibatches", "batch_size"), text)
        if self.critic_warmup_steps >= self.steps:
            text = (
                f"critic_warmup_steps ({self.critic_warmup_steps}) must be below steps ({self.steps}), "
                "or no step trains the policy"
            )
            yield Conflict(("critic_warmup_steps", "steps"), text)
        yield from self._reward_conflicts()

    def _reward_conflicts(self) -> Iterator[Conflict]:
        models = [name for name, term in self.rewards.items() if term.source == MODEL]
        if len(models) > 1:
            text = f"rewards.{models[1]}: the reward model is rewards.{models[0]} already; change that weight"
            yield Conflict((f"rewards.{models[1]}", f"rewards.{models[0]}"), text)
        if not self.uses_reward_model and self.critic_head == "reward":
            text = "critic_head must be zero without the reward model in rewards"
            yield Conflict(("critic_head", "rewards"), text)
        if self.rewards and self.contrastive:
            text = "contrastive must be false with rewards: it reads the reward model's scores of the ranked answers"
            yield Conflict(("contrastive", "rewards"), text)
