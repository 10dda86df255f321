"""Compute cost of each stage, the basis of the time estimate of `plan`.

The unit is one floating-point operation of a forward pass over many tokens. An operation of training or decoding costs
more; the factors were measured once (docs/planning.md) and are good to a factor of about two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.lengths import Measure
from lowrank_rlhf.data.run_data import RunData, divides_held_out
from lowrank_rlhf.data.turns import Turns
from lowrank_rlhf.maths.best_of_n import MOST
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.results.rounds import split
from lowrank_rlhf.sources.model_shape import Shape

TRAINING = 3.0
"""Cost of an operation in training, relative to one in a forward pass."""
DECODING = 3.0
"""Cost of an operation in sampling, which decodes one token per row at a time."""
_BYTES_PER_TOKEN = 4.0
_TEMPLATE_TOKENS = 5.0
ANSWER_SHARE = 0.6
"""Mean length of an answer without demonstrations to measure, as a share of `sample.max_new_tokens`."""


@dataclass(frozen=True)
class Amounts:
    """Row counts of a run's data and their lengths in tokens."""

    training: int
    validation: int
    test: int
    demonstrations: int
    """Demonstrations that SFT trains on."""
    answers: int
    """Answers to rank: the existing ones, or else the planned number."""
    prompt_tokens: float
    longest_prompt: float
    answer_tokens: float
    longest_demonstration: float
    """Longest demonstration that SFT trains on, prompt included."""

    @property
    def tokens(self) -> float:
        """Mean tokens of a prompt with its answer."""
        return self.prompt_tokens + self.answer_tokens


class ByteLengths:
    """Estimate lengths in tokens from bytes, to within about 20 %, where a tokenizer is missing or too slow."""

    unit = "tokens, about"

    def prompts(self, prompts: Sequence[Turns]) -> list[int]:
        """Return the estimated tokens of each prompt, chat template included."""
        return [sum(self.answers([turn.content for turn in prompt])) for prompt in prompts]

    def answers(self, texts: Sequence[str]) -> list[int]:
        """Return the estimated tokens of each answer, end token included."""
        return [round(len(text.encode()) / _BYTES_PER_TOKEN + _TEMPLATE_TOKENS) for text in texts]


def amounts(config: Config, run_dir: RunDir, data: RunData, measure: Measure | None = None) -> Amounts:
    """Count and measure the data that the config names and the run folder has. Raises `UserError` for invalid data."""
    measure = measure or ByteLengths()
    training, validation, test = data.prompts.splits(divides_held_out(run_dir))
    demonstrations = data.prompts.demonstrations
    max_answer = float(config.sample.max_new_tokens)
    max_prompt = config.model.max_length - config.sample.max_new_tokens
    lengths = measure.prompts([prompt.messages for prompt in training])
    responses = measure.answers([row.response for row in demonstrations])
    used = demonstrations[: config.sft.examples] if config.sft.source == "train" else []
    prompts = measure.prompts([row.prompt.messages for row in used])
    rows = [prompt + response for prompt, response in zip(prompts, responses[: len(used)], strict=True)]
    return Amounts(
        training=len(training),
        validation=len(validation),
        test=len(test),
        demonstrations=len(used),
        answers=_answers(config, run_dir, data),
        prompt_tokens=min(max_prompt, _mean(lengths, 0)),
        longest_prompt=min(max_prompt, max(lengths)),
        answer_tokens=min(max_answer, _mean(responses, ANSWER_SHARE * max_answer)),
        longest_demonstration=min(config.model.max_length, max(rows, default=0)),
    )


@dataclass(frozen=True)
class _Passes:
    """Cost of one answer with its prompt, in operations of a forward pass."""

    config: Config
    counts: Amounts
    shape: Shape

    @property
    def below(self) -> int:
        """Decoder layers below the lowest adapter."""
        return self.shape.first_adapted(self.config.lora)

    @property
    def heads(self) -> int:
        """Decoder layers of reward model and critic."""
        return self.config.reward.layers or self.shape.layers

    @property
    def vocabulary(self) -> int:
        """Cost of one token's projection to the vocabulary."""
        return 2 * self.shape.vocabulary * self.shape.hidden

    def forward(self, first: int, last: int, projected: float = 0.0) -> float:
        """Return the cost of layers `first` to `last`, with `projected` tokens projected to the vocabulary."""
        return (
            self.counts.tokens * 2 * (last - first) * (self.shape.per_layer + self.shape.active_experts)
            + projected * self.vocabulary
        )

    def trained(self, first: int, last: int, projected: float = 0.0) -> float:
        """Return the cost of a training pass.

        Its backward pass stops at the lowest adapter and computes no gradients for base weights.
        """
        return TRAINING * (self.forward(first, last, projected) + self.forward(max(first, self.below), last, projected))

    def sampled(self) -> float:
        """Return the cost of sampling. Answers share one prompt pass, but it is small and is counted for each."""
        prompt = self.forward(0, self.shape.layers) * self.counts.prompt_tokens / self.counts.tokens
        return prompt + DECODING * self.counts.answer_tokens * (2 * self.shape.used_weights + self.vocabulary)

    def sampled_and_scored(self) -> float:
        """Return the cost of sampling, and of the reward model's score if there is one."""
        return self.sampled() + self.config.ppo.uses_reward_model * self.forward(0, self.heads)

    def collected(self) -> float:
        """Return the cost of a rollout: sampling, then scoring as all roles, which share layers below the adapters."""
        headed = 1 + self.config.ppo.uses_reward_model
        log_probs = 2 * self.forward(self.below, self.shape.layers, self.counts.answer_tokens)
        return self.sampled() + self.forward(0, self.below) + log_probs + headed * self.forward(self.below, self.heads)


def compute_cost(stage: str, config: Config, counts: Amounts, shape: Shape) -> float:
    """Return the stage's cost in operations of a forward pass; 0 for a stage that runs no model.

    Every round ranks as many answers as the first, and its reward model reads those of all rounds so far.
    """
    number, stage = split(stage)
    passes = _Passes(config, counts, shape)
    if stage == "sft":
        return counts.demonstrations * config.sft.epochs * passes.trained(0, shape.layers, counts.tokens)
    if stage == "sample":
        return counts.answers * passes.sampled()
    if stage == "reward":
        heads = passes.heads
        return number * counts.answers * (passes.forward(0, heads) + config.reward.epochs * passes.trained(0, heads))
    if stage == "ppo":
        return _policy_cost(passes)
    if stage == "evaluate":
        compared = counts.test * config.evaluate.answers_per_prompt * (passes.collected() + passes.sampled())
        return compared + yardstick_answers(config, counts) * passes.sampled_and_scored()
    return 0.0


def yardstick_answers(config: Config, counts: Amounts) -> int:
    """Return the most answers that the yardsticks of stage `evaluate` sample: three greedy ones and n per prompt."""
    return (3 + MOST) * min(config.evaluate.yardstick_prompts, counts.test)


def _policy_cost(passes: _Passes) -> float:
    config, counts, answer = passes.config, passes.counts, passes.counts.answer_tokens
    below, heads, layers = passes.below, passes.heads, passes.shape.layers
    ppo, algorithm, steps = config.ppo, config.align.algorithm, policy_steps(config, counts.answers)
    evaluations = 1 + steps // ppo.evaluate_every
    evaluated = evaluations * min(ppo.evaluate_prompts, counts.validation) * passes.collected()
    if algorithm == "ppo":
        updated = ppo.epochs * (passes.trained(below, layers, answer) + passes.trained(below, heads))
        return steps * ppo.batch_size * (passes.collected() + updated) + evaluated
    # TRL runs all layers for every role, and RLOO once more for the probabilities before the step.
    updated = passes.trained(0, layers, answer) + passes.forward(0, layers, answer)
    if algorithm == "dpo":
        return steps * config.align.batch_size * 2 * updated + evaluated
    before = passes.forward(0, layers, answer) if algorithm == "rloo" else 0.0
    sampled = passes.sampled_and_scored()
    return steps * config.align.batch_size * (sampled + before + updated) + evaluated


def policy_steps(config: Config, answers: int) -> int:
    """Return the optimiser steps of stage `ppo`; for DPO as if every one of the answers were ranked, without ties."""
    align = config.align
    if align.algorithm == "ppo":
        return config.ppo.steps
    if align.algorithm != "dpo":
        return align.steps
    ranked_together = 2 if config.rank.source == "dataset" else config.sample.answers_per_prompt
    comparisons = answers * (ranked_together - 1) / 2
    return max(1, math.ceil(comparisons * align.epochs / align.batch_size))


def seconds_to_go(done: dict[str, float], amount: dict[str, float]) -> float | None:
    """Estimate the seconds of the stages not in `done` from the duration of the finished ones and the cost of each.

    None before the first stage has finished, and once no remaining stage runs a model.
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
