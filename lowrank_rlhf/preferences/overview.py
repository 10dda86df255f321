"""Ranking progress: pace, time left, agreement, biases, and the reward model's accuracy so far."""

import time
from math import ceil
from statistics import median
from typing import NamedTuple

from lowrank_rlhf.config.schema import RankConfig
from lowrank_rlhf.preferences.agreement import (
    PositionBias,
    SameOrder,
    consistency,
    krippendorff_alpha,
    ranking_statistics,
    same_order,
)
from lowrank_rlhf.preferences.carelessness import AnnotatorCheck, check_annotators
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.preferences.project import Project
from lowrank_rlhf.preferences.queue import others_active
from lowrank_rlhf.preferences.reward_tests import RewardTest
from lowrank_rlhf.preferences.store_rows import read_latest
from lowrank_rlhf.preferences.team.annotators import AnnotatorFigures, figures_of_each
from lowrank_rlhf.preferences.team.checks import attention
from lowrank_rlhf.preferences.team.exclusion import excluded_rankings
from lowrank_rlhf.preferences.team.pace import DeadlinePace, pace_until

GENERAL = 2000
"""Comparisons below which a general reward model is near chance (Gao et al. 2022, "Scaling laws for reward model
overoptimization", arXiv 2210.10760, section 3.4)."""
PACE_OF = 20
"""Number of latest rankings that the pace is computed from."""
_CHECKED = 500
"""Number of latest rankings that are checked for signs with each screen of the run's owner."""


class RankingProgress(NamedTuple):
    """Progress shown to one annotator; counts are of prompts.

    Attention checks count like the others. `needed` has all that are shown, until `enough` of the prompts to learn from
    are ranked, and then no more than are ranked.
    `seconds_left` is the time until enough prompts are ranked, by all who are active and at this annotator's pace, none
    is left, or the quota is reached; None without a pace yet. `own_left` is the number of prompts until the annotator's
    quota, None without one, and `pace` the one that the deadline requires: the annotator's with a quota, else that of
    all together.
    """

    prompts: int
    needed: int
    enough: bool
    ranked_by_anyone: int
    ranked: int
    skipped: int
    seconds_each: float | None
    seconds_left: float | None
    own_left: int | None
    pace: DeadlinePace | None


class Overview(NamedTuple):
    """Statistics over all rankings; None if there is too little data."""

    annotators: int
    rankings: int
    comparisons: int
    alpha: float | None
    agreement: SameOrder | None
    consistency: SameOrder | None
    position: PositionBias | None
    longer_preferred: float | None
    uneven_comparisons: int
    tied_pairs: float | None
    written: int
    flagged: int
    guidelines: int | None
    """Rankings whose annotators were shown the current guidelines; None if there are none."""
    of_each: tuple[AnnotatorFigures, ...]
    excluded: dict[str, int]
    """Number of rankings of each excluded annotator."""
    reward_tests: tuple[RewardTest, ...]


def ranking_progress(project: Project, annotator: str) -> RankingProgress:
    """Return the progress of this annotator and of all annotators together."""
    counts, store, needed = project.counts(annotator), project.store, project.needed
    settings, enough, pace = project.settings or RankConfig(), False, None
    if needed:
        trainable = store.ranked_prompts()
        enough, pace = needed <= trainable, pace_until(settings.deadline, needed - trainable)
        needed += counts.prompts - store.trainable_prompts()
    if enough:
        needed = min(needed, counts.ranked_by_anyone)
    seconds = project.store.latest_seconds(annotator, PACE_OF)
    each = median(seconds) if seconds else None
    own_left, not_ranked = None, counts.prompts - counts.ranked - counts.skipped
    with store.transaction() as database:
        people = 1 + others_active(database, annotator, time.time())
    left = ceil(max(0, needed - counts.ranked_by_anyone) / people) or not_ranked
    if settings.quota is not None:
        own_left = max(0, settings.quota - counts.ranked)
        left, pace = min(left, own_left), pace_until(settings.deadline, min(own_left, not_ranked))
    return RankingProgress(
        prompts=counts.prompts,
        needed=needed,
        enough=enough,
        ranked_by_anyone=counts.ranked_by_anyone,
        ranked=counts.ranked,
        skipped=counts.skipped,
        seconds_each=each,
        seconds_left=None if each is None else each * left,
        own_left=own_left,
        pace=pace,
    )


def careless_annotators(project: Project) -> list[AnnotatorCheck]:
    """Return the annotators with signs that their rankings, of the latest of all, carry no judgement."""
    with project.store.transaction() as database:
        latest = read_latest(database, _CHECKED)
    checked = check_annotators(latest.current(), latest.answers, attention(latest), latest.kept())
    return [one for one in checked if one.signs]


def overview(project: Project, of_each: bool = False) -> Overview:
    """Return statistics over all rankings of a project; with `of_each` also of each annotator."""
    contents = project.store.contents()
    current = contents.current()
    found = ranking_statistics(current, contents.answers)
    shown = project.shown_guidelines()
    return Overview(
        annotators=len({ranking.annotator for ranking in current}),
        rankings=len(current),
        comparisons=sum(len(compare(ranking)) for ranking in contents.learned()),
        alpha=krippendorff_alpha(current),
        agreement=same_order(current),
        consistency=consistency(contents.kept()),
        position=found.position,
        longer_preferred=found.longer_preferred,
        uneven_comparisons=found.uneven_comparisons,
        tied_pairs=found.tied_pairs,
        written=sum(ranking.written is not None for ranking in current),
        flagged=found.flagged,
        guidelines=sum(ranking.guidelines == shown.version for ranking in current) if shown else None,
        of_each=tuple(figures_of_each(contents, project.reward_scores)) if of_each else (),
        excluded=excluded_rankings(project.store) if of_each else {},
        reward_tests=project.reward_tests,
    )
