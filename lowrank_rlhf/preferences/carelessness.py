"""Signs that rankings carry no judgement: one pattern of keys, faster than reading, agreement no better than chance."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from math import comb, factorial, prod
from statistics import median
from typing import NamedTuple

from lowrank_rlhf.maths.statistics import wilson_interval
from lowrank_rlhf.preferences.agreement import SameOrder, agreement_by_annotator
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.run.records import Ranking, Sample

LETTERS_PER_SECOND = 70.0
"""Three times the mean silent reading speed of 238 words per minute (Brysbaert 2019, doi 10.1016/j.jml.2019.104047), at
six letters a word with its space."""
NO_AGREEMENT = 0.6
"""Agreement on pairs whose interval ends below this is counted as chance; HH-RLHF's crowd workers agreed on 63 %."""
FEWEST_RANKINGS, FEWEST_PAIRS = 10, 30
_BY_CHANCE = 1e-3


class Sign(StrEnum):
    """Sign of rankings without judgement."""

    PATTERN = "pattern"
    FAST = "fast"
    CHANCE = "chance"


class AnnotatorCheck(NamedTuple):
    """One annotator's rankings: their pace, their agreement with others, and signs that they carry no judgement.

    `pattern`: share of the rankings with the same places on the screen, best to worst, as most; None without an order.
    """

    annotator: str
    rankings: int
    median_seconds: float | None
    pattern: float | None
    agreement: SameOrder | None
    signs: tuple[Sign, ...]


def check_annotators(rankings: Sequence[Ranking], samples: Iterable[Sample]) -> list[AnnotatorCheck]:
    """Check each annotator's rankings of these samples, in the order of their names."""
    letters, agreement = {sample.id: len(sample.text) for sample in samples}, agreement_by_annotator(rankings)
    own = defaultdict(list)
    for ranking in rankings:
        own[ranking.annotator].append(ranking)
    return [_check(name, own[name], letters, agreement.get(name)) for name in sorted(own)]


def near_chance(found: SameOrder | None) -> bool:
    """Return True if enough pairs show that two people agree on them about as often as by chance."""
    return (
        found is not None
        and found.pairs >= FEWEST_PAIRS
        and wilson_interval(found.share, found.pairs).high < NO_AGREEMENT
    )


def _check(
    name: str, rankings: Sequence[Ranking], letters: Mapping[str, int], agreement: SameOrder | None
) -> AnnotatorCheck:
    patterns = Counter(found for ranking in rankings if (found := _pattern(ranking)))
    seconds = [ranking.seconds for ranking in rankings if ranking.seconds is not None]
    signs = {
        Sign.PATTERN: _repeats(patterns),
        Sign.FAST: len(seconds) >= FEWEST_RANKINGS and _too_fast(rankings, letters),
        Sign.CHANCE: near_chance(agreement),
    }
    return AnnotatorCheck(
        annotator=name,
        rankings=len(rankings),
        median_seconds=median(seconds) if seconds else None,
        pattern=max(patterns.values()) / patterns.total() if patterns else None,
        agreement=agreement,
        signs=tuple(sign for sign, shown in signs.items() if shown),
    )


def _pattern(ranking: Ranking) -> tuple[tuple[int, ...], ...]:
    """Return the places on the screen of each tier; empty without a strict order, or if the places are unknown."""
    if not compare(ranking) or not {answer for tier in ranking.tiers for answer in tier} <= set(ranking.shown):
        return ()
    return tuple(tuple(sorted(map(ranking.shown.index, tier))) for tier in ranking.tiers)


def _repeats(patterns: Counter[tuple[tuple[int, ...], ...]]) -> bool:
    """Return True if one pattern is at least half of the rankings and too frequent for shuffled answers.

    Answers are shuffled, so each way to fill tiers of given sizes is equally likely whatever the taste: of those with
    the sizes of the most frequent pattern, the probability that any occurs as often is below 0.1 % (union bound over
    the binomial tails).
    """
    if patterns.total() < FEWEST_RANKINGS:
        return False
    most, times = patterns.most_common(1)[0]
    sizes = [len(tier) for tier in most]
    ways = factorial(sum(sizes)) // prod(factorial(size) for size in sizes)
    alike = sum(count for pattern, count in patterns.items() if [len(tier) for tier in pattern] == sizes)
    tail = sum(
        comb(alike, count) * (1 / ways) ** count * (1 - 1 / ways) ** (alike - count)
        for count in range(times, alike + 1)
    )
    return 2 * times >= patterns.total() and ways * tail < _BY_CHANCE


def _too_fast(rankings: Sequence[Ranking], letters: Mapping[str, int]) -> bool:
    """Return True if in the median a ranking took less time than its answers take to read."""
    paces = [
        ranking.seconds * LETTERS_PER_SECOND - sum(letters.get(answer, 0) for answer in ranking.shown)
        for ranking in rankings
        if ranking.seconds is not None
    ]
    return median(paces) < 0
