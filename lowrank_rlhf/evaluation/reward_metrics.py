"""Accuracy of a reward model on comparisons that it was not trained on."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor

from lowrank_rlhf.maths.reward_gate import LEAST_PROMPTS, Weakness, weakness_of
from lowrank_rlhf.maths.statistics import (
    Interval,
    ReliabilityBin,
    clustered_bootstrap,
    expected_calibration_error,
    paired_difference,
    pearson,
    reliability,
)
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.scoring import require_finite, score_tokens
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.records import Score, write_jsonl
from lowrank_rlhf.training.reward_data import Group, about_reward, rows_of, split_scores
from lowrank_rlhf.training.rollout import RewardScale

GROUPS_PER_BATCH = 32
"""Prompts, with all their answers, scored between two steps of the progress bar."""


@dataclass(frozen=True)
class HeldOutAccuracy:
    """Accuracy on held-out pairs, compared with rules by length. Intervals are 95 % bootstrap intervals over prompts.

    Two equal scores, or lengths, count half.
    """

    pairs_held_out: int
    prompts_held_out: int
    accuracy: float
    accuracy_interval: Interval
    longer_wins: float
    """Accuracy of the rule "the longer answer wins"."""
    longer_wins_interval: Interval
    over_length: float
    """Accuracy less that of the better rule by length."""
    over_length_interval: Interval
    ece: float
    """Expected calibration error, 0 to 1."""
    reliability: tuple[ReliabilityBin, ...]
    margins: tuple[float, ...]
    """Score of the preferred answer less the other one's, for each pair."""
    length_correlation: float

    @property
    def length_rule(self) -> tuple[str, float, Interval]:
        """The better of the rules by length, `longer` or `shorter`, with its accuracy and interval."""
        share, (low, high) = self.longer_wins, self.longer_wins_interval
        if share >= 0.5:
            return "longer", share, Interval(low, high)
        return "shorter", 1 - share, Interval(1 - high, 1 - low)


def held_out_accuracy(groups: Sequence[Group], scores: Sequence[Tensor], samples: int, seed: int) -> HeldOutAccuracy:
    """Return the figures for each group's scores, (K,) each; `samples` and `seed` are the bootstrap's."""
    margins, longer, prompts = [], [], []
    for group, group_scores in zip(groups, scores, strict=True):
        for better, worse, _ in group.pairs:
            margins.append(float(group_scores[better] - group_scores[worse]))
            longer.append(_half_for_ties(group.lengths[better] - group.lengths[worse]))
            prompts.append(group.prompt_id)
    correct = [_half_for_ties(margin) for margin in margins]
    by_length = longer if sum(longer) >= len(longer) / 2 else [1 - share for share in longer]
    over_length, over_length_interval = paired_difference(correct, by_length, prompts, samples, seed)
    confidence = [1 / (1 + math.exp(-min(abs(margin), 700))) for margin in margins]  # exp(-709) is the last finite one
    lengths = [length for group in groups for length in group.lengths]
    return HeldOutAccuracy(
        pairs_held_out=len(margins),
        prompts_held_out=len(groups),
        accuracy=sum(correct) / len(correct),
        accuracy_interval=clustered_bootstrap(correct, prompts, samples, seed),
        longer_wins=sum(longer) / len(longer),
        longer_wins_interval=clustered_bootstrap(longer, prompts, samples, seed),
        over_length=over_length,
        over_length_interval=over_length_interval,
        ece=expected_calibration_error(confidence, correct),
        reliability=tuple(reliability(confidence, correct)),
        margins=tuple(margins),
        length_correlation=pearson([float(score) for group_scores in scores for score in group_scores], lengths),
    )


def correct_pairs(groups: Sequence[Group], scores: Sequence[Tensor]) -> tuple[list[float], list[str]]:
    """Return 1 for each pair in the right order, 0.5 for equal scores, and the pair's prompt."""
    pairs = [
        (_half_for_ties(float(own[better] - own[worse])), group.prompt_id)
        for group, own in zip(groups, scores, strict=True)
        for better, worse, _ in group.pairs
    ]
    return [correct for correct, _ in pairs], [prompt for _, prompt in pairs]


def member_accuracies(groups: Sequence[Group], scores: Sequence[Tensor]) -> tuple[float, ...]:
    """Return the accuracy of each of M members, from their scores of each group's answers, (K, M)."""
    of_members = zip(*(own.unbind(-1) for own in scores), strict=True)  # M times a (K,) per group
    return tuple(fmean(correct_pairs(groups, own)[0]) for own in of_members)


def weakness(figures: HeldOutAccuracy) -> Weakness | None:
    """Return the weakness of the reward model by its figures, or None."""
    return weakness_of(figures.prompts_held_out, figures.accuracy_interval, figures.over_length_interval)


def weakness_in_words(found: Weakness, figures: HeldOutAccuracy) -> str:
    """Return the weakness as a sentence without a full stop."""
    if found == "few":
        return f"the reward model was tested on {figures.prompts_held_out} held-out prompts, fewer than {LEAST_PROMPTS}"
    if found == "chance":
        return "the reward model is not shown to be better than chance on held-out comparisons"
    shown = "no better" if found == "length" else "not shown to be better"
    return f"the reward model is {shown} than preferring the {figures.length_rule[0]} answer"


def verdict_in_words(figures: HeldOutAccuracy) -> str:
    """Return the verdict on the reward model, without a full stop."""
    if found := weakness(figures):
        return weakness_in_words(found, figures)
    return f"better than chance, and than preferring the {figures.length_rule[0]} answer"


def accuracy_in_words(figures: HeldOutAccuracy) -> str:
    """Return accuracy, the better rule by length, and the verdict, for the terminal."""

    def percent(share: float, interval: Interval) -> str:
        low, high = interval
        return f"{100 * share:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"

    low, high = figures.over_length_interval
    rule, by_length, interval = figures.length_rule
    return (
        f"of {figures.pairs_held_out} held-out pairs of {figures.prompts_held_out} prompts the reward model gets "
        f"{percent(figures.accuracy, figures.accuracy_interval)} right, and preferring the {rule} answer "
        f"{percent(by_length, interval)}, a difference of {100 * figures.over_length:+.1f} points "
        f"({100 * low:+.1f} to {100 * high:+.1f}): {verdict_in_words(figures)}"
    )


def load_reward_model(roles: Roles, folder: Path, normalize: bool = True) -> RewardScale:
    """Load the adapter and head of the role REWARD, and return the scale of its scores (`RewardScale.of`)."""
    about = about_reward(folder)
    load_role(roles, Role.REWARD, folder)
    return RewardScale.of(about, normalize)


def score_groups(roles: Roles, groups: Sequence[Group], scale: RewardScale, progress: Progress) -> list[Tensor]:
    """Return the reward model's raw scores of each group's answers, (K,) each, on the CPU."""
    scores: list[Tensor] = []
    with progress.track("score", sum(len(group.answers) for group in groups), "answers") as bar:
        for part in _parts(groups):
            scores += raw_scores(roles, part, scale)
            bar.advance(sum(len(group.answers) for group in part))
    return scores


def raw_scores(roles: Roles, groups: Sequence[Group], scale: RewardScale) -> list[Tensor]:
    """Return the reward model's raw scores of each group's answers, (K,) each, on the CPU, from one batch.

    Raises `ModelNotFinite` if one is not finite: in a comparison, NaN would be the lower score.
    """
    rows = rows_of(groups, roles.base)
    scores = scale.raw(score_tokens(roles, Role.REWARD, rows), rows.response).cpu()
    require_finite(Role.REWARD, "scores", scores, prompts_of(groups))
    return split_scores(scores, groups)


def prompts_of(groups: Sequence[Group]) -> list[str]:
    """Return the prompt id of each answer."""
    return [group.prompt_id for group in groups for _ in group.answers]


def write_scores(path: Path, groups: Sequence[Group], scores: Sequence[Tensor], trained: int) -> None:
    """Write a `Score` per answer; the model was trained on the first `trained` groups."""
    write_jsonl(
        path,
        (
            Score(sample_id=sample, prompt_id=group.prompt_id, score=score, held_out=index >= trained)
            for index, (group, group_scores) in enumerate(zip(groups, scores, strict=True))
            for sample, score in zip(group.samples, group_scores.tolist(), strict=True)
        ),
    )


def _parts(groups: Sequence[Group]) -> Iterator[Sequence[Group]]:
    for start in range(0, len(groups), GROUPS_PER_BATCH):
        yield groups[start : start + GROUPS_PER_BATCH]


def _half_for_ties(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)
