"""Settings of the alternatives to PPO."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from lowrank_rlhf.config.section import Conflict, Count, NonNegative, Rate, Section

Algorithm = Literal["ppo", "rloo", "grpo", "dpo"]
_SAMPLES = frozenset({"steps", "answers_per_prompt"})
_COMPARES = frozenset({"epochs"})


class AlignConfig(Section):
    """Stage 3: how the policy is trained. Scores, evaluations and checkpoints are configured in the `ppo` section."""

    algorithm: Algorithm = "ppo"
    """`ppo` is implemented in this package and set in section `ppo`. The others are TRL's: `rloo` and `grpo` sample and
    use the reward model, without a critic; `dpo` learns from the comparisons and does not sample."""
    steps: Count = 50
    """With `rloo` and `grpo`: number of rollouts, each followed by one optimiser step."""
    answers_per_prompt: Annotated[int, Field(ge=2)] = 4
    """With `rloo` and `grpo`: answers per prompt; they serve as each other's baseline."""
    epochs: Count = 1
    """With `dpo`: passes over the comparisons."""
    batch_size: Count = 32
    """Answers per optimiser step; with `dpo`, comparisons."""
    learning_rate: Rate = 5e-5
    """Peak learning rate of the policy adapter, with linear decay."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of learning-rate warm-up."""
    beta: NonNegative = 0.05
    """Weight of the KL to the SFT model in the reward (`rloo`) or the loss (`grpo`); with `dpo`, its beta."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""

    def conflicts(self) -> Iterator[Conflict]:
        """Yield ignored settings, a batch size that is no multiple of the group size, and DPO with beta 0."""
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
