"""Accuracy of a reward model on the answers of each round: the distribution shift from SFT to the policies."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress

from torch import Tensor

from lowrank_rlhf.evaluation.reward_metrics import correct_pairs, load_reward_model, raw_scores
from lowrank_rlhf.maths.statistics import clustered_bootstrap
from lowrank_rlhf.models.roles import Roles
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.records import Ranking, Sample, read_jsonl
from lowrank_rlhf.run.results.parts import RoundAccuracy
from lowrank_rlhf.training.reward_data import Group


def scores_of_last_round(roles: Roles, run_dir: RunDir, groups: Sequence[Group]) -> list[Tensor] | None:
    """Return the last round's reward model's raw scores of each group's answers, (K,) each; None in the first round.

    It replaces the role REWARD.
    """
    if run_dir.number == 1:
        return None
    scale = load_reward_model(roles, run_dir.round(run_dir.number - 1).artifact("adapters/reward"))
    return raw_scores(roles, groups, scale)


def accuracy_by_round(
    run_dir: RunDir, groups: Sequence[Group], scores: Sequence[Tensor], last: Sequence[Tensor],
    samples: int, seed: int,
) -> tuple[RoundAccuracy, ...]:  # fmt: skip
    """Return the accuracy on the held-out groups' pairs of each round's answers.

    `scores` and `last`, (K,) each, are the new reward model's and the last round's, which knows none of the newest
    answers; it may have been trained on other answers to some of these prompts. `samples` and `seed` are the
    bootstrap's. A round without held-out pairs is left out.
    """
    found = []
    for each in run_dir.up_to_this:
        own = _of_round(groups, {sample.id for sample in read_jsonl(each.artifact("answers.jsonl"), Sample)})
        correct, prompts = correct_pairs(own, scores)
        if not correct:
            continue
        before = correct_pairs(own, last)[0] if each.number == run_dir.number else None
        accuracy = RoundAccuracy(
            round=each.number,
            pairs=len(correct),
            accuracy=sum(correct) / len(correct),
            interval=clustered_bootstrap(correct, prompts, samples, seed),
            before=sum(before) / len(before) if before else None,
        )
        found.append(accuracy)
    return tuple(found)


def ranked_earlier(run_dir: RunDir, groups: Sequence[Group]) -> int:
    """Return the number of groups whose prompt was ranked in earlier rounds only."""
    own = {ranking.prompt_id for ranking in read_jsonl(run_dir.artifact("rankings.jsonl"), Ranking) if ranking.tiers}
    return sum(group.prompt_id not in own for group in groups) if run_dir.number > 1 else 0


def _of_round(groups: Sequence[Group], answers: set[str]) -> list[Group]:
    """Return the groups with the pairs of these answers only; every pair is within one round."""
    found = []
    for group in groups:
        kept = [group.samples[pair[0]] in answers for pair in group.pairs]
        pairs, weights = list(compress(group.pairs, kept)), tuple(compress(group.weights, kept))
        found.append(replace(group, pairs=pairs, weights=weights))
    return found
