"""Settings of the alternatives to PPO."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from lowrank_rlhf.config.section import Conflict, Count, NonNegative, Rate, Section

Algorithm = Literal["ppo", "rloo", "grpo", "dpo"]
_SAMPLES = frozenset({"steps", "answers_per_prompt"})
_COMPARES = frozenset({"epochs"})


class AlignConfig(Section):
    """Stage 3: which algorithm makes the policy. Scores, evaluations and checkpoints are section `ppo`'s for all."""

    algorithm: Algorithm = "ppo"
    """`ppo` is this package's, set in section `ppo`. The others are TRL's: `rloo` and `grpo` sample and ask the reward
    model, too, but need no critic; `dpo` learns from the comparisons themselves and samples nothing."""
    steps: Count = 50
    """With `rloo` and `grpo`: rollouts, each followed by one optimiser step."""
    answers_per_prompt: Annotated[int, Field(ge=2)] = 4
    """With `rloo` and `grpo`: answers to each prompt, which are each other's baseline."""
    epochs: Count = 1
    """With `dpo`: passes over the comparisons."""
    batch_size: Count = 32
    """Answers per optimiser step; with `dpo` comparisons."""
    learning_rate: Rate = 5e-5
    """Of the policy adapter, at its highest; decays linearly."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """First steps, in which the rate rises."""
    beta: NonNegative = 0.05
    """How much staying near SFT counts: the KL's weight in the reward (`rloo`) or the loss (`grpo`), beta of `dpo`."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""

    def conflicts(self) -> Iterator[Conflict]:
        """Yield settings that the algorithm ignores, a batch size that groups do not divide, and DPO with beta 0."""
        for name in sorted(self._ignored()):
            if getattr(self, name) != type(self).model_fields[name].default:
                hint = "set section ppo instead" if self.algorithm == "ppo" else "remove it"
                text = f"{name} has no effect with `algorithm: {self.algorithm}`; {hint}"
                yield Conflict((name, "algorithm"), text)
        if self.algorithm in ("rloo", "grpo") and self.batch_size % self.answers_per_prompt:
            text = f"answers_per_prompt ({self.answers_per_prompt}) must divide batch_size ({self.batch_size})"
            yield Conflict(("answers_per_prompt", "batch_size"), text)
        if self.algorithm == "dpo" and not self.beta:
            text = "beta must be above 0 with `algorithm: dpo`: at 0 the loss does not depend on the policy"
            yield Conflict(("beta", "algorithm"), text)

    def _ignored(self) -> frozenset[str]:
        if self.algorithm == "ppo":
            return frozenset(type(self).model_fields) - {"algorithm"}
        return _SAMPLES if self.algorithm == "dpo" else _COMPARES
