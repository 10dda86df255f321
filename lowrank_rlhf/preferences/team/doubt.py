"""Agreement that speaks against saying that rankings are enough: by chance, or not shown to be above it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from math import ceil, sqrt
from typing import NamedTuple

from lowrank_rlhf.preferences.agreement import alike
from lowrank_rlhf.preferences.carelessness import near_chance
from lowrank_rlhf.run.records import Ranking

USUAL = 0.72
"""Agreement on pairs that `Doubt.more` is computed for; InstructGPT's labelers had 73 %."""
FEWEST_REPEATED = 3
"""Prompts that one person ranked twice, below which agreement with oneself says nothing."""
_Z, _POWER = 1.96, 0.84  # of a two-sided 95 % interval; quantile of a power of 80 %


class Doubt(NamedTuple):
    """Agreement of the annotators that does not show that a reward model can learn from their rankings.

    `more`: prompts that two annotators must rank in addition for people who usually agree to be distinguished
    from chance; 0 if the agreement is shown to be no better than chance. `alone`: it is that of people with themselves.
    """

    share: float
    pairs: int
    more: int
    alone: bool


class _Compared(NamedTuple):
    """Two rankings of a prompt: pairs that both order, those alike less the others, and its variance by chance."""

    pairs: int
    excess: int
    variance: float


def doubt(shared: Sequence[Ranking], repeated: Iterable[Ranking] = ()) -> Doubt | None:
    """Return the doubt about rankings; None if their agreement is above chance, or not measured.

    `shared`: rankings of prompts that several annotators ranked. Only where they have no pairs in common, the agreement
    is that of each annotator with themselves, on `repeated`: all rankings of prompts that they ranked twice, oldest
    first.
    """
    latest = {(one.annotator, one.prompt_id): one for one in shared}
    by_prompt, by_person = defaultdict(list), defaultdict(list)
    for one in latest.values():
        by_prompt[one.prompt_id].append(one)
    found = [_compare(*two) for group in by_prompt.values() for two in combinations(group, 2)]
    prompts = len(by_prompt)
    if alone := not any(one.pairs for one in found):
        for one in repeated:
            by_person[one.annotator, one.prompt_id].append(one)
        found = [_compare(*two) for passes in by_person.values() for two in pairwise(passes)]
        prompts = len(by_person)
    pairs, excess = sum(one.pairs for one in found), sum(one.excess for one in found)
    if not pairs or (alone and prompts < FEWEST_REPEATED):
        return None
    variance, share = sum(one.variance for one in found), (1 + excess / pairs) / 2
    if not alone and near_chance(alike(shared)):
        return Doubt(share, pairs, 0, alone)
    if excess > _Z * sqrt(variance):
        return None
    wanted = ceil(prompts * variance * ((_Z + _POWER) / ((2 * USUAL - 1) * pairs)) ** 2)
    return Doubt(share, pairs, wanted - prompts if prompts < wanted else prompts, alone)


def _compare(one: Ranking, other: Ranking) -> _Compared:
    """Compare two rankings by the answers that both have.

    The variance is that of Kendall's S with ties, over random orders with tiers of the same sizes (Kendall 1970, "Rank
    correlation methods", section 4.4).
    """
    places = [{name: at for at, tier in enumerate(each.tiers) for name in tier} for each in (one, other)]
    common = [name for name in places[0] if name in places[1]]
    signs = [
        _sign(places[0], first, second) * _sign(places[1], first, second) for first, second in combinations(common, 2)
    ]
    sizes = [_sizes(place[name] for name in common) for place in places]
    return _Compared(sum(map(abs, signs)), sum(signs), _variance(len(common), *sizes))


def _sign(place: dict[str, int], first: str, second: str) -> int:
    return (place[first] < place[second]) - (place[first] > place[second])


def _sizes(tiers: Iterable[int]) -> list[int]:
    sizes: defaultdict[int, int] = defaultdict(int)
    for tier in tiers:
        sizes[tier] += 1
    return list(sizes.values())


def _variance(n: int, one: list[int], other: list[int]) -> float:
    if n < 2:
        return 0.0
    twos, threes, whole = [], [], float(n * (n - 1) * (2 * n + 5))
    for sizes in (one, other):
        whole -= sum(t * (t - 1) * (2 * t + 5) for t in sizes)
        twos.append(sum(t * (t - 1) for t in sizes))
        threes.append(sum(t * (t - 1) * (t - 2) for t in sizes))
    triples = threes[0] * threes[1] / (9 * n * (n - 1) * (n - 2)) if n > 2 else 0.0
    return whole / 18 + twos[0] * twos[1] / (2 * n * (n - 1)) + triples
