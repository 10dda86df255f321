"""What a win rate would be if both answers were equally long: judges, and people, prefer longer ones. Numpy only."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lowrank_rlhf.maths.statistics import Floats, Interval, percentile_interval

RIDGE = 1.0
"""Penalty on the length's coefficient, a standard normal prior: where the longer answer always wins it has no maximum.
A weak one, as in AlpacaEval 2, which so keeps answers cut short on purpose from being rewarded."""
_STEPS = 100
_LONGEST_STEP = 1.0
_CLOSE = 1e-10


class LengthControlled(NamedTuple):
    """A win rate at equal length, with its 95 % interval over prompts."""

    win_rate: float
    interval: Interval
    coefficient: float
    """Log-odds that the longest lead in length adds (the phi of Dubois et al.): above 0, longer answers win."""


def length_controlled_win_rate(
    won: ArrayLike, length: ArrayLike, against: ArrayLike, samples: int, seed: int
) -> LengthControlled:
    """Length-controlled win rate (Dubois et al. 2024, arXiv 2404.04475, section 3), of one pair of models.

        P(won) = sigmoid(theta + phi tanh((length - against) / std(length - against))),  win rate = sigmoid(theta)

    Args:
        won: (N, K), 1 for a win, 0 for a loss, 0.5 for a tie: K pairs of answers to each of N prompts.
        length, against: (N, K), lengths of the answer that may win and of the other one, in characters say.
        samples, seed: of the bootstrap over prompts, each with a fit of its own.

    The paper's third term, a prompt's difficulty, takes many models to estimate and is left out. theta is not
    penalised, so that without differences in length this is the plain win rate. Raises `ValueError` for shapes that
    differ, for no values, and for one that is not finite.
    """
    outcomes, longer = (np.asarray(values, dtype=np.float64) for values in (won, np.subtract(length, against)))
    if outcomes.ndim != 2 or outcomes.shape != longer.shape or not outcomes.size:
        raise ValueError(f"needs outcomes and lengths of one shape (N, K), not {outcomes.shape} and {longer.shape}")
    if not (np.isfinite(outcomes).all() and np.isfinite(longer).all()):
        raise ValueError("an outcome or a length is not finite")
    lead = np.tanh(longer / deviation) if (deviation := longer.std()) else np.zeros_like(longer)

    def rates(index: np.ndarray) -> Floats:
        count = len(index)
        return _fit(outcomes[index].reshape(count, -1), lead[index].reshape(count, -1))[0]

    rate, coefficient = _fit(outcomes.reshape(1, -1), lead.reshape(1, -1))
    interval = percentile_interval(len(outcomes), samples, seed, rates, outcomes.shape[1])
    return LengthControlled(float(rate[0]), interval, float(coefficient[0]))


def _fit(won: Floats, lead: Floats) -> tuple[Floats, Floats]:
    """sigmoid(theta) and phi of S fits at once, each to a row of (S, M) outcomes and leads, by Newton's method."""
    mean = won.mean(axis=1)
    decided = (mean == 0) | (mean == 1)  # theta is infinite there, and the rate is the mean
    won = np.where(decided[:, None], 0.5, won)
    start = np.where(decided, 0.5, mean)
    theta, phi = np.log(start / (1 - start)), np.zeros_like(mean)
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-(theta[:, None] + phi[:, None] * lead)))
        weight, missed = p * (1 - p), won - p
        slope = missed.sum(axis=1), (missed * lead).sum(axis=1) - RIDGE * phi
        a, b, c = weight.sum(axis=1), (weight * lead).sum(axis=1), (weight * lead**2).sum(axis=1) + RIDGE
        determinant = a * c - b * b
        step = np.stack([c * slope[0] - b * slope[1], a * slope[1] - b * slope[0]]) / determinant
        step *= np.minimum(1, _LONGEST_STEP / np.maximum(np.abs(step).max(axis=0), _CLOSE))
        theta, phi = theta + step[0], phi + step[1]
        if np.abs(step).max() < _CLOSE:
            break
    return np.where(decided, mean, 1 / (1 + np.exp(-theta))), np.where(decided, 0.0, phi)
