"""The run's reward model on comparisons from anywhere: how often it scores the better answer higher."""

from typing import Any

from torch import Tensor

from lowrank_rlhf.data.comparisons import ComparisonData
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.evaluation.match import load_reward_model
from lowrank_rlhf.evaluation.reward_metrics import held_out_figures, verdict
from lowrank_rlhf.maths.masking import pool
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.scoring import score_tokens
from lowrank_rlhf.preferences.expand import compare
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.reward_data import Group, make_groups, rows_of, split_scores

READ_AT_ONCE = 32
"""Prompts, with all their answers, read between two steps of the progress bar."""


def pair_accuracy(session: Session, data: ComparisonData, seed: int) -> dict[str, Any]:
    """Accuracy on every comparison that fits `model.max_length`, beside the rule that the longer answer wins.

    Both with 95 % bootstrap intervals over prompts; two equal scores, or lengths, count half. Pairs that the annotators
    left tied are in no comparison; `ties` counts them.
    """
    pooling = load_reward_model(session).pooling
    comparisons = [pair for ranking in data.rankings for pair in compare(ranking)]
    groups, note = make_groups(session, data.prompts, data.answers, comparisons, data.rankings)
    if not groups:
        raise UserError(
            f"no prompt of the comparisons fits model.max_length {session.config.model.max_length}; "
            "add model.max_length=... to the command"
        )
    scores = _scores(session, groups, pooling)
    figures = held_out_figures(groups, scores, session.config.evaluate.bootstrap_samples, seed)
    kept = ("accuracy", "accuracy_interval", "longer_wins", "longer_wins_interval", "ece", "length_correlation")
    return {
        "comparisons": figures["pairs_held_out"],
        "prompts": figures["prompts_held_out"],
        "ties": data.ties,
        "too_long": len(comparisons) - figures["pairs_held_out"],
        **{key: figures[key] for key in kept},
        "verdict": verdict(figures),
        "notes": [*data.notes, *([note] if note else [])],
    }


def _scores(session: Session, groups: list[Group], pooling: str) -> list[Tensor]:
    """The reward model's scores of each group's answers, (K,) each, on the CPU."""
    scores: list[Tensor] = []
    with session.progress.track("score", sum(len(group.answers) for group in groups), "answers") as bar:
        for start in range(0, len(groups), READ_AT_ONCE):
            part = groups[start : start + READ_AT_ONCE]
            rows = rows_of(part, session.base)
            pooled = pool(score_tokens(session.roles, Role.REWARD, rows), rows.response, pooling)
            scores += split_scores(pooled.cpu(), part)
            bar.advance(len(rows))
    return scores
