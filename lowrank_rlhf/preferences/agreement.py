"""Agreement of annotators, their position and length biases, their pace."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from enum import StrEnum
from itertools import combinations, pairwise
from math import comb
from statistics import median
from typing import NamedTuple

from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.run.records import Ranking, Sample


class PositionBias(NamedTuple):
    """Preference for the answer shown first, over the rankings with a single best answer.

    `shown_first` is the share of them whose best answer was shown first, `expected` the share expected by chance.
    """

    shown_first: float
    expected: float
    rankings: int


class SameOrder(NamedTuple):
    """Share of the pairs of answers that two rankings order alike, out of `pairs` that both order."""

    share: float
    pairs: int


class RankingStatistics(NamedTuple):
    """Statistics of some rankings; None where none of them is informative."""

    rankings: int
    median_seconds: float | None
    tied_pairs: float | None
    """Share of the pairs of ranked answers that are tied."""
    flagged: int
    position: PositionBias | None
    longer_preferred: float | None
    uneven_comparisons: int
    """Comparisons of answers with different lengths, the base of `longer_preferred`."""


def krippendorff_alpha(rankings: Iterable[Ranking]) -> float | None:
    """Return Krippendorff's nominal alpha of pairwise judgements (2011, "Computing Krippendorff's alpha-reliability").

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
            if ranking.partial and not verdict and tier_of[first] == len(ranking.tiers) - 1:
                continue  # both unplaced, so not compared
            judgements[ranking.prompt_id, first, second][verdict] += 1
            judgements[ranking.prompt_id, second, first][-verdict] += 1
    counts = [[unit[-1], unit[0], unit[1]] for unit in judgements.values() if unit.total() > 1]
    if not any(worse or better for worse, _, better in counts):
        return None
    import krippendorff  # imports numpy and takes half a second, so only when needed

    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


def same_order(rankings: Iterable[Ranking]) -> SameOrder | None:
    """Return the agreement between annotators on pairs of answers; None if no pair has two annotators.

    Each two annotators of a prompt count once, and ties are left out (InstructGPT, section 3.4: 72.6 %). Of several
    rankings of a prompt by one annotator the last counts.
    """
    return in_all(alike(rankings))


class Alike(NamedTuple):
    """Two annotators' rankings of a prompt: the pairs of answers that both order, and how many of them alike."""

    prompt_id: str
    annotators: tuple[str, str]
    same: int
    pairs: int


def alike(rankings: Iterable[Ranking]) -> list[Alike]:
    """Return the agreement of each two annotators of a prompt, as `same_order` counts it."""
    latest = {(ranking.annotator, ranking.prompt_id): ranking for ranking in rankings}
    by_prompt = defaultdict(list)
    for ranking in latest.values():
        by_prompt[ranking.prompt_id].append((ranking.annotator, _ordered(ranking)))
    return [
        Alike(prompt, (name, other_name), *_counts(one, other))
        for prompt, group in by_prompt.items()
        for (name, one), (other_name, other) in combinations(group, 2)
    ]


def in_all(found: Iterable[Alike]) -> SameOrder | None:
    """Return the agreement over all pairs of answers; None if there is none."""
    same, pairs = 0, 0
    for one in found:
        same, pairs = same + one.same, pairs + one.pairs
    return SameOrder(share=same / pairs, pairs=pairs) if pairs else None


def consistency(rankings: Iterable[Ranking]) -> SameOrder | None:
    """Return the agreement of annotators with themselves on repeated prompts; None without any.

    `rankings`: all that were not withdrawn, oldest first.
    """
    return in_all(alike_again(rankings))


def alike_again(rankings: Iterable[Ranking]) -> list[Alike]:
    """Return the agreement of each annotator's successive rankings of a prompt; `rankings` as for `consistency`."""
    history = defaultdict(list)
    for ranking in rankings:
        history[ranking.annotator, ranking.prompt_id].append(ranking)
    return [
        Alike(prompt, (name, name), *_counts(_ordered(first), _ordered(second)))
        for (name, prompt), passes in history.items()
        for first, second in pairwise(passes)
    ]


def agreement_with_scores(rankings: Iterable[Ranking], score: Mapping[str, float]) -> SameOrder | None:
    """Return the share of ordered pairs whose better answer has the higher score; None without such pairs.

    `score`: by answer. Pairs with an answer that has none, and pairs with equal scores, are left out.
    """
    pairs = [(pair.chosen, pair.rejected) for ranking in rankings for pair in compare(ranking)]
    scored = [(score[better], score[worse]) for better, worse in pairs if better in score and worse in score]
    same = [better > worse for better, worse in scored if better != worse]
    return SameOrder(share=sum(same) / len(same), pairs=len(same)) if same else None


def _ordered(ranking: Ranking) -> set[tuple[str, str]]:
    return {(pair.chosen, pair.rejected) for pair in compare(ranking)}


def _counts(one: set[tuple[str, str]], other: set[tuple[str, str]]) -> tuple[int, int]:
    """Return how many pairs both order alike, and how many both order."""
    same = len(one & other)
    return same, same + len(one & {(worse, better) for better, worse in other})


def position_bias(rankings: Iterable[Ranking]) -> PositionBias | None:
    """Return how often the single best answer was shown first, against 1/K; None if no ranking has a single best."""
    clear = [ranking for ranking in rankings if ranking.shown and ranking.tiers and len(ranking.tiers[0]) == 1]
    if not clear:
        return None
    return PositionBias(
        shown_first=sum(ranking.tiers[0][0] == ranking.shown[0] for ranking in clear) / len(clear),
        expected=sum(1 / len(ranking.shown) for ranking in clear) / len(clear),
        rankings=len(clear),
    )


def length_bias(rankings: Iterable[Ranking], samples: Iterable[Sample]) -> float | None:
    """Return the share of comparisons won by the answer with more characters; None without unequal lengths."""
    won = _longer_won(rankings, samples)
    return sum(won) / len(won) if won else None


def ranking_statistics(rankings: Iterable[Ranking], samples: Iterable[Sample]) -> RankingStatistics:
    """Return pace, ties, flags and biases of rankings of these samples."""
    rankings = list(rankings)
    seconds = [ranking.seconds for ranking in rankings if ranking.seconds is not None]
    tied = sum(comb(len(tier), 2) for ranking in rankings for tier in ranking.named_tiers)
    pairs = tied + sum(len(compare(ranking)) for ranking in rankings)
    won = _longer_won(rankings, samples)
    return RankingStatistics(
        rankings=len(rankings),
        median_seconds=median(seconds) if seconds else None,
        tied_pairs=tied / pairs if pairs else None,
        flagged=sum(bool(ranking.flags) for ranking in rankings),
        position=position_bias(rankings),
        longer_preferred=sum(won) / len(won) if won else None,
        uneven_comparisons=len(won),
    )


class AlphaLevel(StrEnum):
    """Interpretation of an alpha."""

    UNKNOWN = "unknown"
    GOOD = "good"
    FAIR = "fair"
    WEAK = "weak"
    NONE = "none"
    OPPOSITE = "opposite"


def alpha_level(alpha: float | None) -> AlphaLevel:
    """Interpret an alpha. The bounds .800 and .667 are Krippendorff's (2004, "Content Analysis", section 11.4)."""
    if alpha is None:
        return AlphaLevel.UNKNOWN
    if alpha >= 0.8:
        return AlphaLevel.GOOD
    if alpha >= 0.667:
        return AlphaLevel.FAIR
    if alpha >= 0.2:
        return AlphaLevel.WEAK
    return AlphaLevel.NONE if alpha > -0.1 else AlphaLevel.OPPOSITE


def _longer_won(rankings: Iterable[Ranking], samples: Iterable[Sample]) -> list[bool]:
    length = {sample.id: len(sample.text) for sample in samples}
    pairs = [(length[pair.chosen], length[pair.rejected]) for ranking in rankings for pair in compare(ranking)]
    return [chosen > rejected for chosen, rejected in pairs if chosen != rejected]
