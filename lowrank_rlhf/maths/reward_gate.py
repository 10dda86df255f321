"""Test of a reward model before a policy is optimised against it, and the test's expected outcome by simulation."""

import itertools
import math
from bisect import bisect_left
from functools import lru_cache
from typing import Literal

import numpy as np

from lowrank_rlhf.maths.statistics import Floats, Interval

Weakness = Literal["few", "chance", "length", "length_unclear"]
"""Reason that a reward model is too weak to optimise against: fewer than `LEAST_PROMPTS` held-out prompts, not shown
to be better than chance, no better than the rule by length, or not shown to be better than that rule. Versions up to
0.1 compared two point estimates for `length`."""

LEAST_PROMPTS = 6
"""Held-out prompts that can show anything: six of six right has a probability of 1/64 by chance, five of five of 1/32,
above the 2.5 % of one side of the interval. The bootstrap of one prompt has no width at all."""
LEAST_TRAINING_PROMPTS = 16
"""Training prompts below which no learning curve is measured."""
POWER = 0.8
"""Expected pass rate at which a number of prompts is enough."""
PROMPTS = (12, 24, 36, 48, 60, 80, 100, 120, 150, 180, 210, 250, 300, 400, 500, 700, 1000)
"""Candidate numbers of ranked prompts."""
_RUNS, _RESAMPLES = 200, 200


def weakness_of(prompts: int, accuracy: Interval, over_length: Interval) -> Weakness | None:
    """Return the weakness of a reward model tested on `prompts` held-out prompts, or None for a good one.

    Both comparisons are by 95 % intervals over prompts, the one with the rule by length paired. Two point estimates
    would call a model that equals the rule better than it in about half of all cases.
    """
    if prompts < LEAST_PROMPTS:
        return "few"
    if accuracy.low <= 0.5:
        return "chance"
    if over_length.high <= 0:
        return "length"
    return "length_unclear" if over_length.low <= 0 else None


def held_out_count(held_out: float, prompts: int) -> int:
    """Return the number of held-out prompts, at least one and never all."""
    return min(max(1, round(held_out * prompts)), prompts - 1)


def prompts_for_curve(held_out: float) -> int:
    """Return the smallest number of ranked prompts with which a learning curve is measured."""
    least = max(math.floor((LEAST_PROMPTS - 1) / held_out), LEAST_TRAINING_PROMPTS + LEAST_PROMPTS)
    parts = ((ranked, held_out_count(held_out, ranked)) for ranked in itertools.count(least))
    return next(ranked for ranked, test in parts if test >= LEAST_PROMPTS and ranked - test >= LEAST_TRAINING_PROMPTS)


@lru_cache(maxsize=256)
def expected_passes(prompts: int, accuracy: float, answers: int, held_out: float) -> float:
    """Simulate the share of reward models with this true pair accuracy that pass `weakness_of`.

    People order `answers` answers to each of `prompts` prompts by a normal utility; the model's score is correlated
    with it so that a pair is in the right order with probability `accuracy`, and lengths are independent of both.
    """
    count = held_out_count(held_out, prompts)
    generator = np.random.default_rng(0)
    first, second = np.triu_indices(answers, 1)
    correlation = math.sin(math.pi * (accuracy - 0.5))  # P(same order) = 1/2 + asin(correlation) / pi
    shape = (_RUNS, count, answers)
    utility, noise, length = (generator.standard_normal(shape) for _ in range(3))
    score = correlation * utility + math.sqrt(1 - correlation**2) * noise

    def right(by: Floats) -> Floats:  # (runs, prompts): share of a prompt's pairs in people's order
        same = (utility[..., first] - utility[..., second]) * (by[..., first] - by[..., second]) > 0
        return np.asarray(same.mean(axis=2), dtype=np.float64)

    correct, longer = right(score), right(length)
    by_length = np.where(longer.mean(axis=1, keepdims=True) >= 0.5, longer, 1 - longer)
    drawn = generator.integers(count, size=(_RESAMPLES, count))

    def intervals(values: Floats) -> list[Interval]:
        low, high = np.percentile(values[:, drawn].mean(axis=2), [2.5, 97.5], axis=1)  # of (runs, resamples)
        return [Interval(*pair) for pair in zip(low.tolist(), high.tolist(), strict=True)]

    found = zip(intervals(correct), intervals(correct - by_length), strict=True)
    return sum(weakness_of(count, *each) is None for each in found) / _RUNS


@lru_cache(maxsize=64)
def prompts_for_power(accuracy: float, answers: int, held_out: float) -> int:
    """Return the smallest of `PROMPTS` with which reward models of this accuracy pass in at least `POWER` of cases."""
    index = bisect_left(PROMPTS, POWER, key=lambda prompts: expected_passes(prompts, accuracy, answers, held_out))
    return PROMPTS[min(index, len(PROMPTS) - 1)]
