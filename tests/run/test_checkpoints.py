"""Which policies stay after training."""

import pytest

from lowrank_rlhf.run.checkpoints import kept_steps


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (50, 10, [10, 20, 40]),  # 20 and 30 are equally near to 25, 30 and 40 almost to 37.5
        (100, 10, [20, 50, 70]),
        (16, 2, [4, 8, 12]),
        (16, 5, [5, 10]),
        (12, 10, [10]),
        (100, 90, [90]),
        (11, 10, [10]),
        (10, 10, []),
        (4, 10, []),
        (1, 1, []),
        (3, 1, [1, 2]),
        (10**12, 1, [10**12 // 4, 10**12 // 2, 3 * 10**12 // 4]),  # without a look at each evaluation
    ],
)
def test_the_policies_of_three_evaluations_stay(steps: int, every: int, expected: list[int]) -> None:
    assert kept_steps(steps, every) == expected
