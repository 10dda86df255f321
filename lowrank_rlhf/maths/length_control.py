"""Length-controlled win rate: judges, and people, prefer longer answers. Numpy only."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lowrank_rlhf.maths.statistics import Floats, Interval, percentile_interval

RIDGE = 1.0
"""Penalty on the length's coefficient, a standard normal prior: the likelihood has no maximum if the longer answer
always wins. AlpacaEval 2 uses a weak penalty too, against rewarding answers truncated on purpose."""
_STEPS = 100
_LONGEST_STEP = 1.0
_CLOSE = 1e-10


class LengthControlled(NamedTuple):
    """A win rate at equal length, with its 95 % interval over prompts."""

    win_rate: float
    interval: Interval
    coefficient: float
    """Log-odds from the largest lead in length (phi of Dubois et al.): above 0, longer answers win."""


def length_controlled_win_rate(
    won: ArrayLike, length: ArrayLike, against: ArrayLike, samples: int, seed: int
) -> LengthControlled:
    """Return the length-controlled win rate (Dubois et al. 2024, arXiv 2404.04475, section 3) of one pair of models.

        P(won) = sigmoid(theta + phi tanh((length - against) / std(length - against))),  win rate = sigmoid(theta)

    Args:
        won: (N, K), 1 for a win, 0 for a loss, 0.5 for a tie: K pairs of answers to each of N prompts.
        length: (N, K), lengths of the answers whose wins are counted, for example in characters.
        against: (N, K), lengths of the other answers.
        samples: bootstrap samples over prompts, each fitted separately.
        seed: seed of the bootstrap.

    The paper's third term, a prompt's difficulty, takes many models to estimate and is left out. theta is not
    penalised, so that without differences in length this is the plain win rate. Raises `ValueError` for different
    shapes, no values, or values that are not finite.
    """
    outcomes, longer = (np.asarray(values, dtype=np.float64) for values in (won, np.subtract(length, against)))
    if outcomes.ndim != 2 or outcomes.shape != longer.shape or not outcomes.size:
        raise ValueError(f"expected outcomes and lengths of one shape (N, K), got {outcomes.shape} and {longer.shape}")
    if not (np.isfinite(outcomes).all() and np.isfinite(longer).all()):
        raise ValueError("outcomes and lengths must be finite")
    lead = np.tanh(longer / deviation) if (deviation := longer.std()) else np.zeros_like(longer)

    def rates(index: np.ndarray) -> Floats:
        count = len(index)
        return _fit(outcomes[index].reshape(count, -1), lead[index].reshape(count, -1))[0]

    rate, coefficient = _fit(outcomes.reshape(1, -1), lead.reshape(1, -1))
    interval = percentile_interval(len(outcomes), samples, seed, rates, outcomes.shape[1])
    return LengthControlled(float(rate[0]), interval, float(coefficient[0]))


def _fit(won: Floats, lead: Floats) -> tuple[Floats, Floats]:
    """Fit S rows of (S, M) outcomes and leads at once by Newton's method; return sigmoid(theta) and phi."""
    mean = won.mean(axis=1)
    decided = (mean == 0) | (mean == 1)  # theta is infinite; the rate is the mean
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
