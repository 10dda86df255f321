"""Best-of-n: of n sampled answers the one with the highest score, and its distance from the sampled distribution."""

import math
from typing import NamedTuple

MOST = 8
"""Largest n of a report: sampling takes time in proportion to n, and a KL of 5 nats would need n = 400."""


class BestOfN(NamedTuple):
    """Number of answers to choose from, for a given KL."""

    n: int
    kl: float
    """KL of best-of-n from the sampled distribution, nats per answer."""
    capped: bool
    """True if a larger n would be nearer to that KL."""


def best_of_n_kl(n: int) -> float:
    """Return log n - (n - 1) / n, the KL of best-of-n from the sampled distribution, nats per answer.

    Stiennon et al. 2020 (arXiv 2009.01325), appendix G.3. Where scores tie it is an upper bound (Beirami et al. 2024,
    arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n


def nearest_best_of_n(kl: float, most: int = MOST) -> BestOfN:
    """Return the n of at most `most` whose KL is nearest to `kl`, the smaller one of two equally near."""
    n = 1
    while n < most and kl > _midpoint(n):
        n += 1
    return BestOfN(n, best_of_n_kl(n), kl > _midpoint(most))


def _midpoint(n: int) -> float:
    """Return the KL that is equally far from those of n and n + 1."""
    return (best_of_n_kl(n) + best_of_n_kl(n + 1)) / 2
