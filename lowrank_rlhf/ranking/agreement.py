"""How far annotators agree, and whether position or length decided for them."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

from lowrank_rlhf.ranking.expand import compare
from lowrank_rlhf.records import Ranking, Sample


class PositionBias(NamedTuple):
    """Share of rankings whose single best answer had been shown first, and the share that chance would give."""

    shown_first: float
    expected: float


def krippendorff_alpha(rankings: Iterable[Ranking]) -> float | None:
    """Krippendorff's nominal alpha (2011, "Computing Krippendorff's alpha-reliability") of pairwise judgements.

    The units are pairs of answers to one prompt, the values -1, 0 (tie) and 1. Which answer of a pair counts as the
    first is arbitrary, so each pair is entered both ways round: alpha does not depend on how ids sort. Of several
    rankings of a prompt by one annotator the last counts. 1 is full agreement, 0 is chance; None if no pair was judged
    by two annotators or if all of them are ties.
    """
    latest = {(ranking.annotator, ranking.prompt_id): ranking for ranking in rankings}
    judgements: defaultdict[tuple[str, str, str], Counter[int]] = defaultdict(Counter)
    for ranking in latest.values():
        tier_of = {answer: index for index, tier in enumerate(ranking.tiers) for answer in tier}
        for first, second in combinations(tier_of, 2):
            verdict = (tier_of[first] < tier_of[second]) - (tier_of[first] > tier_of[second])
            judgements[ranking.prompt_id, first, second][verdict] += 1
            judgements[ranking.prompt_id, second, first][-verdict] += 1
    counts = [[unit[-1], unit[0], unit[1]] for unit in judgements.values() if unit.total() > 1]
    if not any(worse or better for worse, _, better in counts):
        return None
    import krippendorff  # pulls in numpy and takes half a second: only when needed

    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


def position_bias(rankings: Iterable[Ranking]) -> PositionBias | None:
    """How often the single best answer stood first on the screen, against 1/K; None if no ranking can tell."""
    clear = [ranking for ranking in rankings if ranking.shown and ranking.tiers and len(ranking.tiers[0]) == 1]
    if not clear:
        return None
    return PositionBias(
        shown_first=sum(ranking.tiers[0][0] == ranking.shown[0] for ranking in clear) / len(clear),
        expected=sum(1 / len(ranking.shown) for ranking in clear) / len(clear),
    )


def length_bias(rankings: Iterable[Ranking], samples: Iterable[Sample]) -> float | None:
    """Share of comparisons won by the answer with more characters, equal lengths left out; None if there are none."""
    length = {sample.id: len(sample.text) for sample in samples}
    pairs = [(length[pair.chosen], length[pair.rejected]) for ranking in rankings for pair in compare(ranking)]
    uneven = [chosen > rejected for chosen, rejected in pairs if chosen != rejected]
    return sum(uneven) / len(uneven) if uneven else None
