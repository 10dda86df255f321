"""How much a stage has to compute, so that its time can be told before it runs.

The unit is one floating-point operation of a forward pass over many tokens. Training and decoding cost more for each of
theirs; by how much was measured once (docs/planning.md) and holds to a factor of about two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.lengths import Measure
from lowrank_rlhf.data.run_data import RunData
from lowrank_rlhf.data.turns import Turns
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.sources.model_shape import Shape

TRAINING = 3.0
"""Time of an operation of a forward and backward, in those of a forward alone."""
DECODING = 3.0
"""The same for an operation of sampling, one token of each row at a time."""
_BYTES_PER_TOKEN = 4.0
_TEMPLATE_TOKENS = 5.0
_ANSWER_SHARE = 0.6  # of sample.max_new_tokens, where no demonstration shows how long answers are


@dataclass(frozen=True)
class Amounts:
    """Counts and lengths in tokens of what a run reads and writes."""

    training: int
    held_out: int
    demonstrations: int
    """Demonstrations that SFT trains on."""
    answers: int
    """Answers to rank: those there are, or those there will be."""
    prompt_tokens: float
    longest_prompt: float
    answer_tokens: float
    longest_demonstration: float
    """Of those that SFT trains on, with its prompt."""

    @property
    def tokens(self) -> float:
        """Of a prompt with its answer."""
        return self.prompt_tokens + self.answer_tokens


class Bytes:
    """Lengths in tokens, told from bytes to a fifth or so: for want of a tokenizer, or to save its time."""

    unit = "tokens, about"

    def prompts(self, prompts: Sequence[Turns]) -> list[int]:
        """Of all turns, each with what a template puts around it."""
        return [sum(self.answers([turn.content for turn in prompt])) for prompt in prompts]

    def answers(self, texts: Sequence[str]) -> list[int]:
        """Of each text with what ends it."""
        return [round(len(text.encode()) / _BYTES_PER_TOKEN + _TEMPLATE_TOKENS) for text in texts]


def amounts(config: Config, run_dir: RunDir, data: RunData, measure: Measure | None = None) -> Amounts:
    """Count what the config's data and the run's folder hold. Raises `UserError` where the data is bad."""
    measure = measure or Bytes()
    training, held_out, shown = data.prompts.training, data.prompts.held_out, data.prompts.demonstrations
    most, room = float(config.sample.max_new_tokens), config.model.max_length - config.sample.max_new_tokens
    lengths = measure.prompts([prompt.messages for prompt in training])
    demonstrated = measure.answers([row.response for row in shown])
    taken = shown[: config.sft.examples] if config.sft.source == "train" else []
    asked = measure.prompts([row.prompt.messages for row in taken])
    whole = [prompt + answer for prompt, answer in zip(asked, demonstrated[: len(taken)], strict=True)]
    return Amounts(
        training=len(training),
        held_out=len(held_out),
        demonstrations=len(taken),
        answers=_answers(config, run_dir, data),
        prompt_tokens=min(room, _mean(lengths, 0)),
        longest_prompt=min(room, max(lengths)),
        answer_tokens=min(most, _mean(demonstrated, _ANSWER_SHARE * most)),
        longest_demonstration=min(config.model.max_length, max(whole, default=0)),
    )


def work(stage: str, config: Config, counts: Amounts, shape: Shape) -> float:
    """The stage's work in operations of a forward pass; 0 for one that runs no model."""
    below, heads = shape.first_adapted(config.lora), config.reward.layers or shape.layers
    vocabulary = 2 * shape.vocabulary * shape.hidden

    def forward(first: int, last: int, projected: float = 0.0) -> float:
        """One prompt with its answer through some of the layers, `projected` of its tokens on to the vocabulary."""
        return counts.tokens * 2 * (last - first) * shape.per_layer + projected * vocabulary

    def trained(first: int, last: int, projected: float = 0.0) -> float:
        """Forward from `first`, and backward as far as there are adapters; the frozen base has no weight gradients."""
        return TRAINING * (forward(first, last, projected) + forward(max(first, below), last, projected))

    # The prompt is read once for all its answers; small beside the decoding, it is counted for each.
    sampled = forward(0, shape.layers) * counts.prompt_tokens / counts.tokens + DECODING * counts.answer_tokens * (
        2 * shape.linear_weights + vocabulary
    )
    answer = counts.answer_tokens
    # The layers below the adapters run once for all four roles (decision 0006).
    met = sampled + forward(0, below) + 2 * forward(below, shape.layers, answer) + 2 * forward(below, heads)
    if stage == "sft":
        return counts.demonstrations * config.sft.epochs * trained(0, shape.layers, counts.tokens)
    if stage == "sample":
        return counts.answers * sampled
    if stage == "reward":
        return counts.answers * (forward(0, heads) + config.reward.epochs * trained(0, heads))
    if stage == "ppo":
        ppo, algorithm, steps = config.ppo, config.align.algorithm, policy_steps(config, counts)
        evaluated = (1 + steps // ppo.evaluate_every) * min(ppo.evaluate_prompts, counts.held_out) * met
        if algorithm == "ppo":
            learnt = ppo.epochs * (trained(below, shape.layers, answer) + trained(below, heads))
            return steps * ppo.batch_size * (met + learnt) + evaluated
        # TRL runs all layers for every role, RLOO once more for the probabilities before the step.
        learnt = trained(0, shape.layers, answer) + forward(0, shape.layers, answer)
        if algorithm == "dpo":
            return steps * config.align.batch_size * 2 * learnt + evaluated
        again = forward(0, shape.layers, answer) if algorithm == "rloo" else 0.0
        return steps * config.align.batch_size * (sampled + forward(0, heads) + again + learnt) + evaluated
    if stage == "evaluate":
        return counts.held_out * (met + sampled)
    return 0.0


def policy_steps(config: Config, counts: Amounts) -> int:
    """Optimiser steps of the stage that makes the policy; DPO's as if every answer were ranked, none of them tied."""
    align = config.align
    if align.algorithm == "ppo":
        return config.ppo.steps
    if align.algorithm != "dpo":
        return align.steps
    ranked_together = 2 if config.rank.source == "dataset" else config.sample.answers_per_prompt
    comparisons = counts.answers * (ranked_together - 1) / 2
    return max(1, math.ceil(comparisons * align.epochs / align.batch_size))


def seconds_to_go(done: dict[str, float], amount: dict[str, float]) -> float | None:
    """Seconds that the stages not in `done` will take, from those that the others took and the work of each.

    None at the beginning, when there is no pace yet, and at the end, when no model has to run any more.
    """
    finished = {name: seconds for name, seconds in done.items() if amount.get(name)}
    remaining = sum(units for name, units in amount.items() if name not in done)
    if not finished or not remaining:
        return None
    return remaining * sum(finished.values()) / sum(amount[name] for name in finished)


def _answers(config: Config, run_dir: RunDir, data: RunData) -> int:
    path = run_dir.artifact("answers.jsonl")
    if path.exists():
        with path.open(encoding="utf-8") as lines:
            return sum(1 for _ in lines)
    if data.comparisons is not None:
        return len(data.comparisons.answers)
    return len(data.prompts.training[: config.sample.prompts]) * config.sample.answers_per_prompt


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
