"""Choice of the policy to keep: the rule's hand values, its ties, and its noise."""

import math
from functools import reduce

import numpy as np
import pytest

from lowrank_rlhf.maths.policy_choice import Evaluated, choose, ends_fewer, standard_error

ALL_END = [True] * 8
HALF_END = [True, False] * 4


def evaluated(step: int, objectives: list[float], ended: list[bool] = ALL_END) -> Evaluated:
    return Evaluated(step, objectives, ended)


def test_the_standard_error_of_a_paired_difference() -> None:
    """Differences 0, 1, 2, 3 have the sample variance 5/3; what both policies share cancels."""
    assert standard_error([1, 2, 3, 4], [1, 1, 1, 1]) == pytest.approx(math.sqrt(5 / 3 / 4))
    assert standard_error([101, -98, 53, 4], [101, -99, 51, 1]) == pytest.approx(math.sqrt(5 / 3 / 4))
    assert standard_error([1, 2], [2, 3]) == 0
    assert standard_error([1], [9]) == math.inf
    assert standard_error([1], [9, 2]) == 0  # a mean of version 0.1


@pytest.mark.parametrize(
    ("first", "last", "kept", "best"),
    [
        ([1, 2, 3, 4], [1, 1, 1, 1], 1, 1),  # 1.5 higher, and a standard error is 0.65
        ([-3, 4, -3, 4], [0, 0, 0, 0], 2, 1),  # 0.5 higher, and a standard error is 2.02
        ([0, 2], [0, 0], 2, 1),  # 1 higher, exactly one standard error
        ([0, 2.1], [0.1, 0], 2, 1),  # 1 higher, and a standard error is 1.1
        ([0, 2.1], [0, 0.1], 2, 1),  # 1 higher, and a standard error is 1
        ([0, 2, 1], [0, 0, 0], 1, 1),  # 1 higher, and a standard error is 0.58
        ([0, 0], [0, 0], 2, 1),  # the last of equal ones is kept, the first remains the best
        ([0, 0], [5, 0], 2, 2),
        ([5], [0], 2, 1),  # one prompt shows nothing
    ],
)
def test_the_last_policy_is_kept_unless_an_earlier_one_is_better_by_a_standard_error(first, last, kept, best) -> None:
    ends = [True] * len(first)
    found = choose(evaluated(1, first, ends), evaluated(2, last, ends), ends)
    assert [policy.step for policy in found] == [kept, best]


def test_a_slow_decline_is_compared_with_the_best_and_not_with_the_one_before() -> None:
    """Each evaluation is 0.4 standard errors of the difference lower than the one before."""
    noise = np.array([-1.0, 1.0, -1.0, 1.0])
    error = noise.std(ddof=1) / 2
    policies = [
        evaluated(step, (-0.4 * error * step + (noise if step % 2 else 0 * noise)).tolist()) for step in range(4)
    ]
    kept, best = reduce(lambda found, last: choose(found[1], last, ALL_END), policies[1:], (policies[0], policies[0]))
    assert standard_error(policies[0].objectives, policies[3].objectives) == pytest.approx(error)
    assert (kept.step, best.step) == (0, 0)
    assert choose(policies[0], policies[2], ALL_END)[0].step == 0  # without noise any decline decides
    assert choose(policies[0], policies[1], ALL_END)[0].step == 1


def test_of_equally_good_policies_the_last_one_is_kept_in_half_of_the_runs() -> None:
    """The highest of eight means is the last policy's in one run of eight."""
    generator, last_kept = np.random.default_rng(0), 0
    for _ in range(200):
        best, kept = None, None
        for step in range(8):
            kept, best = choose(best, evaluated(step, generator.normal(size=64).tolist(), []), [])
        last_kept += bool(kept and kept.step == 7)
    assert 80 < last_kept < 120


def test_fewer_answers_end_where_chance_does_not_explain_it() -> None:
    """Of 128: no resample misses 4 cut answers with a probability of (124/128)^128 = 0.017, and 3 with 0.048."""
    sft = [True] * 128
    assert not ends_fewer([False] * 3 + [True] * 125, sft)
    assert ends_fewer([False] * 4 + [True] * 124, sft)
    assert not ends_fewer(sft, [False] * 4 + [True] * 124)
    assert not ends_fewer([False] * 4 + [True] * 124, [True] * 124 + [False] * 4)  # other prompts, the same share
    assert not ends_fewer([], sft)
    assert not ends_fewer(sft, [])


@pytest.mark.parametrize(
    ("first", "last", "sft", "kept", "best"),
    [
        (ALL_END, HALF_END, ALL_END, 1, 1),  # though its objective is higher
        (HALF_END, ALL_END, ALL_END, 2, 2),
        (HALF_END, HALF_END, ALL_END, 2, 2),  # then the objectives decide
        (ALL_END, HALF_END, HALF_END, 2, 2),
        (ALL_END, [False] + [True] * 7, ALL_END, 2, 2),  # one of eight is chance
    ],
)
def test_a_policy_that_ends_fewer_answers_than_sft_is_worse_than_one_that_does_not(
    first, last, sft, kept, best
) -> None:
    found = choose(evaluated(1, [0.0] * 8, first), evaluated(2, [1.0] * 8, last), sft)
    assert [policy.step for policy in found] == [kept, best]
    found = choose(evaluated(1, [1.0] * 8, HALF_END), evaluated(2, [0.0] * 8), ALL_END)
    assert [policy.step for policy in found] == [2, 2]


def test_the_mean_alone_of_version_0_1_decides() -> None:
    old = Evaluated(3, [0.5], [])
    assert choose(old, evaluated(4, [9.0, -8.2]), [])[0] == old  # a mean of 0.4
    assert choose(old, evaluated(4, [9.0, -7.8]), [])[0].step == 4
