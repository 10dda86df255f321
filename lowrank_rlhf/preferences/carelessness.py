"""Signs that rankings carry no judgement: places on the screen, faster than reading, agreement by chance."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from math import exp, factorial, lgamma, log, log1p, prod
from statistics import median
from typing import Any, NamedTuple
from unicodedata import east_asian_width

from lowrank_rlhf.preferences.agreement import Alike, SameOrder, alike, alike_again, in_all
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.run.records import Ranking, Sample

LETTERS_PER_SECOND = 70.0
"""Three times the mean silent reading speed of 238 words per minute (Brysbaert 2019, doi 10.1016/j.jml.2019.104047), at
six letters a word with its space."""
WIDE = 3.5
"""Letters that a wide character counts as: a Chinese word has one or two."""
NO_AGREEMENT = 0.6
"""Agreement on pairs whose interval ends below this is counted as chance; HH-RLHF's crowd workers agreed on 63 %."""
FEWEST_RANKINGS, FEWEST_PROMPTS, FEWEST_CHECKS = 10, 10, 3
_BY_CHANCE, _RESAMPLES = 1e-3, 1000


class Sign(StrEnum):
    """Sign of rankings without judgement."""

    PATTERN = "pattern"
    PLACE = "place"
    FAST = "fast"
    CHANCE = "chance"
    AGAIN = "again"
    CHECKS = "checks"


class Attention(NamedTuple):
    """Attention checks of one annotator: `right` of `pairs` with a known order were ordered so; a tie is wrong."""

    checks: int
    right: int
    pairs: int

    @property
    def failed(self) -> bool:
        """Return True if enough checks were ordered about as often as by chance."""
        return self.checks >= FEWEST_CHECKS and self.right < NO_AGREEMENT * self.pairs


class AnnotatorCheck(NamedTuple):
    """One annotator's rankings: pace, agreement with others and with oneself, and signs that they carry no judgement.

    `pattern`: largest share of the rankings with the same places on the screen, best to worst; None without an order.
    `place`: largest share whose single best answer was at one place; None without such answers. `unread`: rankings with
    a long answer that was never scrolled to its end.
    """

    annotator: str
    rankings: int
    median_seconds: float | None
    pattern: float | None
    place: float | None
    agreement: SameOrder | None
    own_agreement: SameOrder | None
    attention: Attention | None
    unread: int
    signs: tuple[Sign, ...]


def check_annotators(
    rankings: Sequence[Ranking],
    samples: Iterable[Sample],
    attention: Mapping[str, Attention] | None = None,
    kept: Iterable[Ranking] = (),
) -> list[AnnotatorCheck]:
    """Check each annotator's rankings of these samples, in the order of their names.

    `attention`: results of the annotators' attention checks, whose rankings are not among the others. `kept`: all
    rankings that were not withdrawn, oldest first, both of a prompt ranked twice.
    """
    attention = attention or {}
    letters = {sample.id: _letters(sample.text) for sample in samples}
    own, shared, again = defaultdict(list), defaultdict(list), defaultdict(list)
    for ranking in rankings:
        own[ranking.annotator].append(ranking)
    for two in alike(rankings):
        for name in two.annotators:
            shared[name].append(two)
    for two in alike_again(kept):
        again[two.annotators[0]].append(two)
    names = sorted({*own, *attention})
    return [_check(name, own[name], letters, shared[name], again[name], attention.get(name)) for name in names]


def near_chance(found: Sequence[Alike]) -> bool:
    """Return True if enough prompts show that annotators, or one with oneself, agree about as often as by chance.

    The interval is over prompts: the pairs of one ranking are not independent.
    """
    if len({two.prompt_id for two in found if two.pairs}) < FEWEST_PROMPTS:
        return False
    from lowrank_rlhf.maths.statistics import clustered_bootstrap  # imports numpy

    values = [verdict for two in found for verdict in (*[1.0] * two.same, *[0.0] * (two.pairs - two.same))]
    prompts = [two.prompt_id for two in found for _ in range(two.pairs)]
    return clustered_bootstrap(values, prompts, _RESAMPLES, seed=0).high < NO_AGREEMENT


def _check(
    name: str,
    rankings: Sequence[Ranking],
    letters: Mapping[str, float],
    shared: Sequence[Alike],
    again: Sequence[Alike],
    attention: Attention | None,
) -> AnnotatorCheck:
    patterns = Counter(found for ranking in rankings if (found := _pattern(ranking)))
    places = Counter((pattern[0][0], _answers(pattern)) for pattern in patterns.elements() if len(pattern[0]) == 1)
    seconds = [ranking.seconds for ranking in rankings if ranking.seconds is not None]
    signs = {
        Sign.PATTERN: _repeats(patterns, _ways),
        Sign.PLACE: _repeats(places, lambda place: place[1]),
        Sign.FAST: len(seconds) >= FEWEST_RANKINGS and _too_fast(rankings, letters),
        Sign.CHANCE: near_chance(shared),
        Sign.AGAIN: near_chance(again),
        Sign.CHECKS: attention is not None and attention.failed,
    }
    return AnnotatorCheck(
        annotator=name,
        rankings=len(rankings),
        median_seconds=median(seconds) if seconds else None,
        pattern=_largest_share(patterns),
        place=_largest_share(places),
        agreement=in_all(shared),
        own_agreement=in_all(again),
        attention=attention,
        unread=sum(bool(ranking.unread) for ranking in rankings),
        signs=tuple(sign for sign, shown in signs.items() if shown),
    )


_Pattern = tuple[tuple[int, ...], ...]
"""Places on the screen of each tier, best first."""


def _pattern(ranking: Ranking) -> _Pattern:
    """Return the ranking's pattern; empty without a strict order, or if the places are unknown."""
    if not compare(ranking) or not {answer for tier in ranking.tiers for answer in tier} <= set(ranking.shown):
        return ()
    return tuple(tuple(sorted(map(ranking.shown.index, tier))) for tier in ranking.tiers)


def _answers(pattern: _Pattern) -> int:
    return sum(map(len, pattern))


def _ways(pattern: _Pattern) -> int:
    """Return the number of patterns with tiers of the same sizes."""
    return factorial(_answers(pattern)) // prod(factorial(len(tier)) for tier in pattern)


def _largest_share(found: Counter[Any]) -> float | None:
    return max(found.values()) / found.total() if found else None


def _repeats(found: Counter[Any], ways: Callable[[Any], int]) -> bool:
    """Return True if one outcome is at least half of all and too frequent for shuffled answers.

    Answers are shuffled, so whatever the taste each of the `ways` of an outcome is equally likely: the probability that
    any of them occurs as often is below 0.1 % (union bound over the binomial tails).
    """
    if found.total() < FEWEST_RANKINGS:
        return False
    most, times = found.most_common(1)[0]
    if 2 * times < found.total():
        return False
    trials, chance = sum(count for one, count in found.items() if ways(one) == ways(most)), 1 / ways(most)
    return chance < 1 and _binomial_tail(times, trials, chance) < _BY_CHANCE * chance


def _binomial_tail(least: int, trials: int, chance: float) -> float:
    """Return the probability of `least` or more successes in so many trials."""
    whole = lgamma(trials + 1)
    return sum(
        exp(whole - lgamma(k + 1) - lgamma(trials - k + 1) + k * log(chance) + (trials - k) * log1p(-chance))
        for k in range(least, trials + 1)
    )


def _letters(text: str) -> float:
    return sum(WIDE if east_asian_width(letter) in "WF" else 1.0 for letter in text)


def _too_fast(rankings: Sequence[Ranking], letters: Mapping[str, float]) -> bool:
    """Return True if in the median a ranking took less time than its answers take to read."""
    paces = [
        ranking.seconds * LETTERS_PER_SECOND - sum(letters.get(answer, 0.0) for answer in ranking.shown)
        for ranking in rankings
        if ranking.seconds is not None
    ]
    return median(paces) < 0
