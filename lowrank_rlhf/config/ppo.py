"""Settings of PPO."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lowrank_rlhf.config.section import Conflict, Count, Fraction, NonNegative, Rate, Section


class PpoConfig(Section):
    """Stage 3: PPO against the reward model with a KL penalty towards SFT."""

    steps: Count = 50
    """Rollouts, each followed by an update."""
    batch_size: Count = 32
    """Prompts per rollout."""
    epochs: Count = 4
    """Passes over each rollout."""
    minibatches: Count = 1
    """Optimiser steps per pass; must divide the batch size."""
    learning_rate: Rate = 5e-5
    """Of the policy adapter, at its highest; decays linearly."""
    critic_learning_rate: Rate = 1e-4
    """Of the critic adapter and its head, at its highest; decays linearly."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """First steps, in which both rates rise: Adam's first steps have full length whatever the gradient's noise."""
    critic_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """First steps in which only the critic learns."""
    critic_head: Literal["reward", "zero"] = "zero"
    """The critic adapter is a copy of the reward adapter; its head is copied too, or starts at zero."""
    kl_coef: NonNegative = 0.05
    """Weight beta of the KL penalty; with `adaptive` its starting value, which is 0.15 unless set."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive` moves beta so that the KL per response stays near `kl_target` (Ziegler et al. 2019)."""
    kl_target: Annotated[float, Field(gt=0)] = 6.0
    """Nats per response aimed at by the adaptive controller."""
    kl_horizon: Count = 10_000
    """Responses over which the adaptive controller corrects."""
    gamma: Fraction = 1.0
    """Discount per token."""
    gae_lambda: Fraction = 0.95
    """Lambda of generalised advantage estimation."""
    whiten_advantages: bool = True
    """Shift and scale advantages to mean 0 and variance 1 over the rollout's real tokens."""
    whiten_rewards: bool = False
    """Scale the per-token rewards to variance 1 before GAE, keeping their mean."""
    clip_range: Annotated[float, Field(gt=0)] = 0.2
    """The probability ratio is clipped to 1 plus or minus this."""
    value_clip_range: Annotated[float, Field(gt=0)] = 0.2
    """Values may move this far from the rollout's before their loss is clipped."""
    value_coef: Annotated[float, Field(gt=0)] = 0.1
    """Weight of the value loss."""
    target_kl: Annotated[float, Field(gt=0)] | None = None
    """End a rollout's passes early when the approximate KL to the sampling policy exceeds this."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm, policy and critic each."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-5
    """Adam's epsilon."""
    normalize_score: bool = True
    """Shift and scale the reward model's scores by their mean and deviation on SFT answers."""
    contrastive: bool = False
    """Take from each score the mean score of the ranked answers to the same prompt (Shen et al. 2024); only these
    prompts are used. What is left is what makes an answer better than SFT's, with less variance."""
    score_clip: Annotated[float, Field(gt=0)] | None = 5.0
    """Clip scores to plus or minus this."""
    missing_eos: Literal["replace", "penalty", "keep"] = "replace"
    """An unfinished response's score is replaced by, or lowered by, `missing_eos_score`, or kept."""
    missing_eos_score: float = -1.0
    """The score (`replace`) or what is added to it (`penalty`) when a response does not end."""
    evaluate_every: Count = 10
    """Steps between evaluations on held-out prompts."""
    evaluate_prompts: Count = 32
    """Use at most so many held-out prompts in each of them."""
    save_every: Count = 10
    """Steps between checkpoints."""
    accept_weak_reward: bool = False
    """Train even if the reward model was no better than chance, or than preferring longer (or shorter) answers."""

    @model_validator(mode="before")
    @classmethod
    def _adaptive_starts_higher(cls, settings: Any) -> Any:
        """Start an adaptive controller, which can lower beta, from 0.15 as the code of Ziegler et al. 2019 does."""
        if isinstance(settings, dict) and settings.get("kl_controller") == "adaptive":
            return {"kl_coef": 0.15, **settings}
        return settings

    def conflicts(self) -> Iterator[Conflict]:
        """Yield minibatches that do not divide the batch, and a warm-up that leaves the policy no step."""
        if self.batch_size % self.minibatches:
            text = f"minibatches ({self.minibatches}) must divide batch_size ({self.batch_size})"
            yield Conflict(("minibatches", "batch_size"), text)
        if self.critic_warmup_steps >= self.steps:
            text = (
                f"critic_warmup_steps ({self.critic_warmup_steps}) must be below steps ({self.steps}), "
                "or no step trains the policy"
            )
            yield Conflict(("critic_warmup_steps", "steps"), text)
