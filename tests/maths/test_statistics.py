"""Evaluation statistics against hand values, closed forms and other estimators."""

import math
import statistics

import numpy as np
import pytest
import torch

from lowrank_rlhf.maths.length_control import RIDGE, length_controlled_win_rate
from lowrank_rlhf.maths.statistics import (
    Interval,
    ReliabilityBin,
    bootstrap_interval,
    clustered_bootstrap,
    expected_calibration_error,
    fall_from_peak,
    mean_shift,
    paired_difference,
    pearson,
    reliability,
    win_rate,
    wins,
)


def test_bootstrap_of_a_bernoulli_sample_agrees_with_the_normal_approximation() -> None:
    values = [1.0] * 280 + [0.0] * 120
    half = 1.96 * math.sqrt(0.7 * 0.3 / 400)
    interval = bootstrap_interval(values, samples=10_000, seed=3)
    assert interval.low == pytest.approx(0.7 - half, abs=0.004)
    assert interval.high == pytest.approx(0.7 + half, abs=0.004)


def test_bootstrap_of_two_values_has_the_exact_distribution() -> None:
    # Of {0, 1} the resampled mean is 0, 1/2, 1 with probability 1/4, 1/2, 1/4: both tails exceed 2.5 %.
    assert bootstrap_interval([0.0, 1.0], samples=2000, seed=0) == Interval(0.0, 1.0)
    assert bootstrap_interval([2.5, 2.5, 2.5], samples=100, seed=0) == Interval(2.5, 2.5)


def test_bootstrap_is_seeded_and_takes_any_statistic() -> None:
    values = np.arange(51.0)
    assert bootstrap_interval(values, 500, 7) == bootstrap_interval(values, 500, 7)
    assert bootstrap_interval(values, 500, 7) != bootstrap_interval(values, 500, 8)
    low, high = bootstrap_interval(values, 2000, 1, np.median)
    # The order statistics n/2 -+ 1.96 sqrt(n)/2 bound the median.
    assert low == pytest.approx(25 - 7, abs=2)
    assert high == pytest.approx(25 + 7, abs=2)


def test_bootstrap_goes_over_blocks() -> None:
    values = np.tile([0.0, 1.0], 2000)  # 4,000 values: blocks of 250 resamples, 1,001 of them in five blocks
    low, high = bootstrap_interval(values, samples=1001, seed=1)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(4000), rel=0.1)


def test_bootstrap_refuses_what_has_no_mean() -> None:
    for values in ([], [1.0, math.nan], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="finite"):
            bootstrap_interval(values, 100, 0)
    with pytest.raises(ValueError, match="samples"):
        bootstrap_interval([1.0], 0, 0)


def test_clustered_bootstrap_is_wider_by_the_design_effect() -> None:
    # 100 prompts of 6 equal pairs each: only 100 independent values, so sqrt(6) times wider than 600 would be.
    per_prompt = [1.0] * 60 + [0.0] * 40
    values = np.repeat(per_prompt, 6)
    groups = np.repeat([f"p{number}" for number in range(100)], 6)
    low, high = clustered_bootstrap(values, groups, samples=5000, seed=2)
    naive = bootstrap_interval(values, samples=5000, seed=2)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 100)
    assert (low, high) == pytest.approx((0.6 - half, 0.6 + half), abs=0.015)
    assert (high - low) / (naive.high - naive.low) == pytest.approx(math.sqrt(6), rel=0.08)


def test_clustered_bootstrap_weighs_values_not_groups() -> None:
    # Groups of 3 ones and of a single zero: drawn means are 0, 3/4 and 1, never 1/2.
    assert clustered_bootstrap([1, 1, 1, 0], ["a", "a", "a", "b"], 2000, 0) == Interval(0.0, 1.0)
    equal = [0.2, 0.9, 0.4, 0.7]
    assert clustered_bootstrap(equal, [0, 1, 2, 3], 3000, 5) == bootstrap_interval(equal, 3000, 5)
    with pytest.raises(ValueError, match="4 values but 2 groups"):
        clustered_bootstrap(equal, ["a", "b"], 10, 0)


def test_the_mean_is_over_values_in_every_draw() -> None:
    """25 prompts of nine ones, 25 of a single zero: the mean of group means is 0.5, of the values 0.9."""
    values = np.concatenate([np.ones(9 * 25), np.zeros(25)])
    groups = np.concatenate([np.repeat(np.arange(25), 9), 25 + np.arange(25)])
    low, high = clustered_bootstrap(values, groups, 4000, 1)
    # A draw has B zeros, B binomial(50, 1/2), so the mean is 9(50 - B) / (9(50 - B) + B); 2.5 % tails of B: 18 and 32.
    assert low == pytest.approx(9 * 18 / (9 * 18 + 32), abs=0.01)
    assert high == pytest.approx(9 * 32 / (9 * 32 + 18), abs=0.01)


def test_paired_difference_cancels_what_both_have_in_common() -> None:
    generator = np.random.default_rng(3)
    hard = generator.normal(0, 1, 200)  # the item's own part, in both
    first, second = hard + 0.1 + generator.normal(0, 0.05, 200), hard + generator.normal(0, 0.05, 200)
    difference, (low, high) = paired_difference(first, second, np.arange(200), 4000, 0)
    spread = (first - second).std() / math.sqrt(200)
    assert difference == pytest.approx(first.mean() - second.mean())
    assert (low, high) == pytest.approx((difference - 1.96 * spread, difference + 1.96 * spread), abs=0.001)
    assert paired_difference(first, second, [0] * 200, 100, 0)[1] == pytest.approx((difference, difference))
    with pytest.raises(ValueError, match="equal length"):
        paired_difference([1.0], [1.0, 2.0], ["a", "b"], 10, 0)


@pytest.mark.parametrize(("prompts", "per_prompt"), [(40, 4), (120, 1)])
def test_an_equal_model_is_called_better_in_2_to_5_per_cent(prompts: int, per_prompt: int) -> None:
    """Both are right on 65 % of pairs, independently given the prompt; point estimates call 45 to 50 % better."""
    generator = np.random.default_rng(prompts)
    groups = np.repeat(np.arange(prompts), per_prompt)
    by_interval = by_points = 0
    runs = 1000
    for seed in range(runs):
        easy = generator.beta(2.6, 1.4, prompts)[groups]  # the pairs of one prompt have something in common
        model, rule = (generator.random((2, len(groups))) < easy).astype(float)
        difference, interval = paired_difference(model, rule, groups, 400, seed)
        by_points += difference > 0
        by_interval += interval.low > 0
    assert by_points / runs > 0.43
    assert 0.01 < by_interval / runs < 0.05


def test_fall_from_peak_by_hand() -> None:
    """One prompt, three measurements: of six orders two end with the lowest value after the highest drop."""
    found = fall_from_peak([[2.0], [3.0], [1.0]], samples=6000)
    assert (found.peak, found.drop) == (1, 2.0)
    assert found.p == pytest.approx(1 / 3, abs=0.02)
    assert fall_from_peak([[1.0, 1.0], [1.0, 1.0]]).p == 1
    assert fall_from_peak([[1.0] * 40, [0.0] * 40], samples=99).p == 0.01  # the given order counts as one of 100
    rise = fall_from_peak([[0.0] * 9, [1.0] * 9])
    assert (rise.peak, rise.drop, rise.p) == (0, -1.0, 1.0)
    for wrong in ([[1.0]], [[], []], [[1.0], [math.nan]]):
        with pytest.raises(ValueError, match="at least two measurements"):
            fall_from_peak(wrong)


def test_fall_from_peak_has_its_level_where_three_falls_in_a_row_have_not() -> None:
    """Eight evaluations of one policy on 32 prompts: 5 % by the test. A fall of 0.2 is found in four of five cases."""
    generator = np.random.default_rng(6)
    false_alarms = found = three_falls = 0
    runs = 300
    for seed in range(runs):
        noise = generator.normal(0, 0.25, 32) + generator.normal(0.6, 0.3, (8, 32))
        false_alarms += fall_from_peak(noise, 200, seed).p <= 0.05
        means = noise.mean(axis=1)
        three_falls += any((np.diff(means)[start : start + 3] < 0).all() for start in range(5))
        falling = noise - np.array([0, 0, 0, 0, 0, 0.07, 0.13, 0.2])[:, None]
        found += fall_from_peak(falling, 200, seed).p <= 0.05
    assert false_alarms / runs < 0.09
    assert three_falls / runs > 0.12
    assert found / runs > 0.8


def test_win_rate_counts_ties_half() -> None:
    policy, sft = [2.0, 1.0, 0.0, 1.0 + 1e-12], [1.0, 2.0, -1.0, 1.0]
    assert wins(policy, sft).tolist() == [1.0, 0.0, 1.0, 0.5]
    assert win_rate(policy, sft) == 2.5 / 4
    assert win_rate(sft, policy) == 1.5 / 4
    assert win_rate([1.0, 1.2], [1.1, 1.0], tie=0.15) == 0.75
    with pytest.raises(ValueError, match="equal length"):
        win_rate([1.0], [1.0, 2.0])


def test_mean_shift_in_standard_deviations_of_sft() -> None:
    sft = [1.0, 2.0, 3.0, 4.0]
    assert mean_shift([5.0, 6.0], sft) == pytest.approx(3.0 / statistics.stdev(sft), rel=1e-12)
    assert mean_shift(sft, sft) == 0.0
    assert math.isnan(mean_shift([1.0, 2.0], [0.1, 0.1, 0.1]))


def test_reliability_and_calibration_error_by_hand() -> None:
    probabilities, outcomes = [0.0, 0.05, 0.52, 0.58, 1.0], [0, 1, 1, 1, 1]
    first, middle, last = reliability(probabilities, outcomes)
    assert first == ReliabilityBin(0.0, 0.1, 2, 0.025, 0.5)
    assert (middle.low, middle.count, middle.accuracy) == (0.5, 2, 1.0)
    assert middle.probability == pytest.approx(0.55)
    assert last == ReliabilityBin(0.9, 1.0, 1, 1.0, 1.0)  # 1.0 belongs to the last bin
    assert expected_calibration_error(probabilities, outcomes) == pytest.approx((2 * 0.475 + 2 * 0.45 + 0) / 5)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        reliability([1.2], [1])


def test_calibrated_predictions_have_a_small_error() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.uniform(0.5, 1.0, 20_000)
    outcomes = (generator.uniform(size=20_000) < probabilities).astype(float)
    assert expected_calibration_error(probabilities, outcomes) < 0.012
    assert expected_calibration_error(np.minimum(probabilities + 0.2, 1.0), outcomes) > 0.1


def test_pearson_agrees_with_the_standard_library() -> None:
    first, second = [1.0, 2.0, 4.0, 7.0], [3.0, 1.0, 5.0, 4.0]
    assert pearson(first, second) == pytest.approx(statistics.correlation(first, second), rel=1e-12)
    assert pearson(first, [-value for value in first]) == -1.0
    assert math.isnan(pearson(first, [0.1] * 4))


class TestLengthControl:
    """Against torch's L-BFGS on the same objective, closed forms, and data with a known answer."""

    def fitted(self, won: np.ndarray, length: np.ndarray, against: np.ndarray) -> tuple[float, float]:
        """sigmoid(theta) and phi by another solver."""
        lead = torch.tensor(np.tanh((length - against) / (length - against).std()).ravel())
        target = torch.tensor(won.ravel())
        weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS(
            [weights], max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
        )

        def objective() -> torch.Tensor:
            solver.zero_grad()
            logits = weights[0] + weights[1] * lead
            likelihood = (target * logits.sigmoid().log() + (1 - target) * (-logits).sigmoid().log()).sum()
            loss = 0.5 * RIDGE * weights[1] ** 2 - likelihood
            loss.backward()
            return loss

        solver.step(objective)
        return weights[0].sigmoid().item(), weights[1].item()

    @pytest.mark.parametrize("share", [0.03, 0.5, 0.9])
    @pytest.mark.parametrize("shape", [(200, 1), (12, 1), (30, 4)])
    def test_equals_another_solver(self, share: float, shape: tuple[int, int]) -> None:
        generator = np.random.default_rng(int(100 * share) + shape[0])
        length, against = generator.normal(200, 60, shape), generator.normal(150, 40, shape)
        won = generator.choice([0.0, 0.5, 1.0], shape, p=[0.9 * (1 - share), 0.1, 0.9 * share])
        found = length_controlled_win_rate(won, length, against, 100, 0)
        rate, coefficient = self.fitted(won, length, against)
        assert found.win_rate == pytest.approx(rate, abs=1e-6)
        assert found.coefficient == pytest.approx(coefficient, abs=1e-5)

    def test_where_the_longer_answer_always_wins(self) -> None:
        """Separable: only the penalty keeps the coefficient finite. Half of the pairs are longer: nothing else wins."""
        length = np.array([[120.0], [150.0], [80.0], [50.0]])
        won, against = (length > 100).astype(float), np.full((4, 1), 100.0)
        found = length_controlled_win_rate(won, length, against, 100, 0)
        assert found.win_rate == pytest.approx(0.5, abs=1e-9)
        assert found.coefficient == pytest.approx(self.fitted(won, length, against)[1], abs=1e-5)
        assert found.coefficient > 0.5

    def test_recovers_what_made_the_data(self) -> None:
        """A judge that likes length sees .73; at equal length it would have said sigmoid(0.4) = .599."""
        generator = np.random.default_rng(5)
        lead = generator.normal(30, 40, (20_000, 1))
        logits = 0.4 + 1.5 * np.tanh(lead / lead.std())
        won = (generator.random((20_000, 1)) < 1 / (1 + np.exp(-logits))).astype(float)
        found = length_controlled_win_rate(won, lead, np.zeros_like(lead), 100, 0)
        assert won.mean() > 0.7
        assert found.win_rate == pytest.approx(0.5987, abs=0.012)
        assert found.coefficient == pytest.approx(1.5, abs=0.1)
        assert found.interval.low < 0.5987 < found.interval.high

    def test_swapping_the_sides_mirrors_it(self) -> None:
        generator = np.random.default_rng(9)
        length, against = generator.normal(9, 3, (40, 2)), generator.normal(8, 3, (40, 2))
        won = generator.choice([0.0, 0.5, 1.0], (40, 2), p=[0.2, 0.1, 0.7])
        one = length_controlled_win_rate(won, length, against, 500, 3)
        other = length_controlled_win_rate(1 - won, against, length, 500, 3)
        assert one.win_rate == pytest.approx(1 - other.win_rate, abs=1e-9)
        assert one.coefficient == pytest.approx(other.coefficient, abs=1e-9)
        assert one.interval == pytest.approx((1 - other.interval.high, 1 - other.interval.low), abs=1e-9)

    def test_equal_lengths_leave_the_plain_win_rate_and_its_interval(self) -> None:
        won = np.array([[1.0, 0.5], [0.0, 1.0], [1.0, 1.0]])
        found = length_controlled_win_rate(won, np.full((3, 2), 7), np.full((3, 2), 7), 1000, 4)
        assert found.win_rate == pytest.approx(0.75, abs=1e-12)
        assert found.coefficient == 0
        plain = bootstrap_interval(won.mean(axis=1), 1000, 4)
        assert found.interval == pytest.approx(plain, abs=1e-9)

    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_all_won_or_all_lost(self, value: float) -> None:
        found = length_controlled_win_rate(np.full((5, 1), value), [[3], [4], [5], [6], [7]], np.ones((5, 1)), 100, 0)
        assert (found.win_rate, found.interval) == (value, (value, value))

    def test_refuses_what_it_cannot_use(self) -> None:
        with pytest.raises(ValueError, match="one shape"):
            length_controlled_win_rate([1.0, 0.0], [1, 2], [1, 2], 100, 0)
        with pytest.raises(ValueError, match="must be finite"):
            length_controlled_win_rate([[1.0, float("nan")]], [[1, 2]], [[1, 2]], 100, 0)
