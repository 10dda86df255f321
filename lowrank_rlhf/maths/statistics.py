"""Statistics of an evaluation: bootstrap intervals over prompts, win rate, calibration. Numpy only."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

NORMAL_QUANTILE = 1.959963984540054
"""97.5 % quantile of the normal distribution: 95 % lie within it on both sides."""

# Resamples are drawn in blocks of about this many numbers (8 bytes each), so that memory stays small for any N.
_BLOCK = 1_000_000


class Interval(NamedTuple):
    """95 % interval; a pair in JSON."""

    low: float
    high: float


@dataclass(frozen=True)
class ReliabilityBin:
    """One bar of a reliability diagram: predictions in [low, high), in the last bin high included."""

    low: float
    high: float
    count: int
    probability: float
    """Mean predicted probability in the bin."""
    accuracy: float
    """Share of true outcomes in the bin."""


def _vector(values: ArrayLike) -> Floats:
    """Return at least one finite number as (N,) float64."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0 or not np.isfinite(vector).all():
        raise ValueError(f"expected a list of at least one number, all finite, got shape {vector.shape}")
    return vector


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    one, two = _vector(first), _vector(second)
    if one.shape != two.shape:
        raise ValueError(f"expected two lists of equal length, got {one.size} and {two.size}")
    return one, two


def percentile_interval(
    count: int, samples: int, seed: int, resampled: Callable[[NDArray], Floats], width: int = 1
) -> Interval:
    """Return the percentile 95 % bootstrap interval: draw `count` of `count` items with replacement `samples` times.

    `resampled` maps indices (S, count) to (S,) figures; `width` is the number of values it processes per index.
    """
    if samples < 1:
        raise ValueError("samples must be at least 1")
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // (count * width))
    figures = [
        resampled(generator.integers(count, size=(min(rows, samples - start), count)))
        for start in range(0, samples, rows)
    ]
    low, high = np.percentile(np.concatenate(figures), [2.5, 97.5])
    return Interval(float(low), float(high))


def bootstrap_interval(
    values: ArrayLike, samples: int, seed: int, statistic: Callable[..., Floats] = np.mean
) -> Interval:
    """Return the percentile 95 % bootstrap interval of a statistic over prompts (Efron & Tibshirani 1993, ch. 13).

    values (N,), one per prompt; statistic(array (S, N), axis=1) -> (S,), such as `np.mean` or `np.median`.
    Raises `ValueError` for no values or one that is not finite.
    """
    vector = _vector(values)
    return percentile_interval(vector.size, samples, seed, lambda index: statistic(vector[index], axis=1))


def wilson_interval(share: float, count: int) -> Interval:
    """Return Wilson's 95 % score interval of a share of `count` independent items (Wilson 1927).

    Unlike a bootstrap's it has a width at 0 and 1 too.
    """
    z = NORMAL_QUANTILE
    scale = 1 + z**2 / count
    centre = (share + z**2 / (2 * count)) / scale
    reach = z / scale * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Interval(max(0.0, centre - reach), min(1.0, centre + reach))


def clustered_bootstrap(values: ArrayLike, groups: Sequence[str] | ArrayLike, samples: int, seed: int) -> Interval:
    """Return the percentile 95 % interval of the mean of values (N,) that are dependent within groups (N,).

    Whole groups are resampled: the pairs of one prompt share its answers. The mean is over all values of the groups
    drawn. Raises `ValueError` where the lengths differ, or for no values or one that is not finite.
    """
    vector = _vector(values)
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    if member.shape != vector.shape:
        raise ValueError(f"{vector.size} values but {member.size} groups")
    sums, counts = np.bincount(member, weights=vector), np.bincount(member)
    return percentile_interval(
        counts.size, samples, seed, lambda index: sums[index].sum(axis=1) / counts[index].sum(axis=1)
    )


def paired_difference(
    first: ArrayLike, second: ArrayLike, groups: Sequence[str] | ArrayLike, samples: int, seed: int
) -> tuple[float, Interval]:
    """Return the mean of first - second, (N,) each, and its 95 % interval over groups (N,), such as prompts.

    Both are measured on the same items, so whatever makes an item hard for both cancels: `first` is shown to be better
    where the interval is above 0. If the two are equally good, that happens in about 2.5 % of cases. Raises
    `ValueError` as `clustered_bootstrap` does.
    """
    one, two = _pair(first, second)
    return float((one - two).mean()), clustered_bootstrap(one - two, groups, samples, seed)


class Fall(NamedTuple):
    """Fall of a mean from its peak to the last of several measurements of the same prompts."""

    peak: int
    """Index of the measurement with the highest mean, the last one left out."""
    drop: float
    """Peak's mean less the last one's; negative for a rise."""
    p: float
    """One-sided p-value."""


def fall_from_peak(scores: ArrayLike, samples: int = 1000, seed: int = 0) -> Fall:
    """Test if the last of K >= 2 measurements of the same N prompts, (K, N), is below the highest of the earlier ones.

    Paired: the K values of each prompt are permuted `samples` times. If all measurements are of equally good models
    every order is equally likely, and as the peak is chosen again each time, p accounts for the choice. Raises
    `ValueError` for fewer than two measurements, no prompts, or values that are not finite.
    """
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) < 2 or not matrix.size or not np.isfinite(matrix).all():
        raise ValueError(f"needs at least two measurements of the same prompts, finite, not {matrix.shape}")
    means = matrix.mean(axis=1)
    peak, drop = int(means[:-1].argmax()), float(means[:-1].max() - means[-1])
    generator, as_large, rows = np.random.default_rng(seed), 1, max(1, _BLOCK // matrix.size)
    for start in range(0, samples, rows):
        block = np.broadcast_to(matrix, (min(rows, samples - start), *matrix.shape))
        permuted = generator.permuted(block, axis=1).mean(axis=2)  # (S, K)
        as_large += int((permuted[:, :-1].max(axis=1) - permuted[:, -1] >= drop - 1e-12).sum())
    return Fall(peak, drop, as_large / (samples + 1))


def wins(policy_scores: ArrayLike, sft_scores: ArrayLike, tie: float = 1e-9) -> Floats:
    """Return 1 per prompt if the policy's score is higher, 0 if SFT's is, 0.5 within `tie`: (N,), (N,) -> (N,)."""
    policy, sft = _pair(policy_scores, sft_scores)
    difference = policy - sft
    return np.where(np.abs(difference) <= tie, 0.5, (difference > 0).astype(np.float64))


def win_rate(policy_scores: ArrayLike, sft_scores: ArrayLike, tie: float = 1e-9) -> float:
    """Return the share of prompts on which the policy's answer scores higher than SFT's; ties count half."""
    return float(wins(policy_scores, sft_scores, tie).mean())


def mean_shift(policy_scores: ArrayLike, sft_scores: ArrayLike) -> float:
    """Return the difference of the means in sample standard deviations of the SFT scores (Glass's delta).

    nan if all SFT scores are equal. Raises `ValueError` if either list is empty or not finite.
    """
    policy, sft = _vector(policy_scores), _vector(sft_scores)
    deviation = 0.0 if np.ptp(sft) == 0 else float(sft.std(ddof=1))
    return float(policy.mean() - sft.mean()) / deviation if deviation else float("nan")


def reliability(probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> list[ReliabilityBin]:
    """Bin predicted probabilities (N,) in [0, 1] with their outcomes (N,), 0 or 1 (Guo et al. 2017, section 2).

    Empty bins are left out. For pairs, pass the probability of the answer that the model prefers and whether people
    preferred it too: with "chosen" always first every outcome would be 1. Raises `ValueError` outside [0, 1].
    """
    probability, outcome = _pair(probabilities, outcomes)
    if probability.min() < 0 or probability.max() > 1:
        raise ValueError("probabilities must be in [0, 1]")
    which = np.minimum((probability * bins).astype(int), bins - 1)
    return [
        ReliabilityBin(
            low=number / bins,
            high=(number + 1) / bins,
            count=int((which == number).sum()),
            probability=float(probability[which == number].mean()),
            accuracy=float(outcome[which == number].mean()),
        )
        for number in np.unique(which).tolist()
    ]


def expected_calibration_error(probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> float:
    """Return the mean of |accuracy - probability| over the bins, weighted by their counts (Guo et al. 2017, eq. 3)."""
    diagram = reliability(probabilities, outcomes, bins)
    return sum(bar.count * abs(bar.accuracy - bar.probability) for bar in diagram) / sum(bar.count for bar in diagram)


def pearson(first: ArrayLike, second: ArrayLike) -> float:
    """Return Pearson's correlation of (N,) with (N,), in -1 to 1; nan if either is constant."""
    one, two = _pair(first, second)
    if np.ptp(one) == 0 or np.ptp(two) == 0:
        return float("nan")
    one, two = one - one.mean(), two - two.mean()
    return float(np.clip(one @ two / np.sqrt((one @ one) * (two @ two)), -1.0, 1.0))
