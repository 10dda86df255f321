"""Pairs of the answers of a ranking. Pure Python."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TypeVar

Answer = TypeVar("Answer")


def ordered_pairs(tiers: Sequence[Sequence[Answer]]) -> Iterator[tuple[Answer, Answer, int]]:
    """Yield better answer, worse answer and the distance of their tiers (1 = adjacent); ties give no pair.

    `tiers` are the answers, best first; a tier contains ties (InstructGPT, section 3.5: all pairs of a ranking).
    """
    for (higher, better_tier), (lower, worse_tier) in combinations(enumerate(tiers), 2):
        for better in better_tier:
            for worse in worse_tier:
                yield better, worse, lower - higher
