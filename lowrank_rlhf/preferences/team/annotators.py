"""Statistics of each annotator for the run's owner."""

from collections.abc import Iterable
from typing import NamedTuple

from lowrank_rlhf.preferences.agreement import (
    RankingStatistics,
    SameOrder,
    agreement_with_scores,
    ranking_statistics,
)
from lowrank_rlhf.preferences.carelessness import AnnotatorCheck, check_annotators
from lowrank_rlhf.preferences.contents import Contents
from lowrank_rlhf.preferences.team.checks import attention
from lowrank_rlhf.run.records import Score


class AnnotatorFigures(NamedTuple):
    """Statistics of one annotator's rankings.

    `with_reward_model`: agreement with the reward model on prompts that it was not trained on; None without any.
    """

    check: AnnotatorCheck
    statistics: RankingStatistics
    with_reward_model: SameOrder | None


def figures_of_each(contents: Contents, scores: Iterable[Score]) -> list[AnnotatorFigures]:
    """Return the statistics of each annotator, in the order of their names; `scores`: by the reward model."""
    current = contents.current()
    held_out = {score.sample_id: score.score for score in scores if score.held_out}
    found = []
    for check in check_annotators(current, contents.answers, attention(contents), contents.kept()):
        own = [ranking for ranking in current if ranking.annotator == check.annotator]
        statistics = ranking_statistics(own, contents.answers)
        found.append(AnnotatorFigures(check, statistics, agreement_with_scores(own, held_out)))
    return found
