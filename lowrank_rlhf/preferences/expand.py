"""Rankings from scores, and pairwise comparisons from rankings."""

from collections.abc import Sequence

from lowrank_rlhf.maths.pairs import ordered_pairs
from lowrank_rlhf.run.records import Comparison, Ranking, Sample


def ranking_from_scores(
    prompt_id: str,
    samples: Sequence[Sample],
    scores: Sequence[float],
    annotator: str,
    tie_margin: float = 0.0,
    shown: Sequence[str] = (),
) -> Ranking:
    """Rank answers by score, highest first; the order of `samples` does not matter.

    A tier contains all answers within `tie_margin` of its best one (not of its neighbours, so that a chain of small
    steps does not become one big tie). Raises `ValueError` if there is not one score for each sample.
    """
    ordered = sorted(zip(scores, samples, strict=True), key=lambda pair: (-pair[0], pair[1].id))
    tiers: list[list[str]] = []
    tier_best = float("inf")
    for score, sample in ordered:
        if not tiers or tier_best - score > tie_margin:
            tiers.append([])
            tier_best = score
        tiers[-1].append(sample.id)
    return Ranking(prompt_id=prompt_id, tiers=tuple(map(tuple, tiers)), annotator=annotator, shown=tuple(shown))


def compare(ranking: Ranking) -> list[Comparison]:
    """Return every strictly ordered pair of the ranking's answers (InstructGPT, section 3.5); ties give none."""
    return [
        Comparison(
            prompt_id=ranking.prompt_id,
            chosen=chosen,
            rejected=rejected,
            annotator=ranking.annotator,
            tier_gap=gap,
        )
        for chosen, rejected, gap in ordered_pairs(ranking.tiers)
    ]
