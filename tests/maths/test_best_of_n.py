"""Best-of-n: its KL by hand and from exact probabilities, and the n for a given KL."""

import math

import pytest

from lowrank_rlhf.maths.best_of_n import MOST, best_of_n_kl, nearest_best_of_n


@pytest.mark.parametrize(("n", "kl"), [(1, 0), (2, 0.693147 - 0.5), (4, 1.386294 - 0.75), (8, 2.079442 - 0.875)])
def test_kl_by_hand(n: int, kl: float) -> None:
    assert best_of_n_kl(n) == pytest.approx(kl, abs=1e-6)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_kl_from_the_exact_distribution_of_the_best_of_many_outcomes(n: int) -> None:
    """Of m equally likely outcomes without ties, the k-th is the best of n with probability (k^n - (k-1)^n) / m^n."""
    m = 5_000
    probabilities = [(k / m) ** n - ((k - 1) / m) ** n for k in range(1, m + 1)]
    exact = sum(p * math.log(p * m) for p in probabilities)
    assert best_of_n_kl(n) == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize(
    ("kl", "n", "capped"),
    [
        (-0.2, 1, False),
        (0.0965, 1, False),  # halfway between 0 and 0.1931
        (0.0966, 2, False),
        (0.193, 2, False),
        (0.64, 4, False),
        (1.25, 8, False),  # 1.2564 is halfway between the KL of 8 and of 9
        (1.26, 8, True),
        (5.16, 8, True),
        (math.inf, 8, True),
    ],
)
def test_nearest_n(kl: float, n: int, capped: bool) -> None:
    assert nearest_best_of_n(kl) == (n, best_of_n_kl(n), capped)


def test_nearest_n_against_a_search() -> None:
    for step in range(600):
        kl = step / 200 - 0.5
        found = nearest_best_of_n(kl, 20)
        assert found.n == min(range(1, 21), key=lambda n: abs(best_of_n_kl(n) - kl))
        assert found.capped == (abs(best_of_n_kl(21) - kl) < abs(best_of_n_kl(20) - kl))
    assert MOST == 8  # the setting's sentence and the documentation name it
