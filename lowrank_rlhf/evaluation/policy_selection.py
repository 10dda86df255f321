"""Evaluations of the policy while it is trained, whatever the algorithm."""

import math

from lowrank_rlhf.evaluation.compare import Answers, Contest
from lowrank_rlhf.models.allocator import release_freed_memory
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.nan_recovery import diverged

WATCHED_PROMPTS = 8
"""Held-out prompts whose answers are kept at each evaluation, for people to read how they change."""


def meet(session: Session, contest: Contest, step: int) -> tuple[Answers, dict[str, float]]:
    """The policy's answers to the held-out prompts, and figures of them. Raises `Diverged` if the objective is NaN."""
    answers = contest.meet(session)
    release_freed_memory()
    figures = contest.figures(answers, session.config.ppo)
    if not math.isfinite(figures["objective"]):
        why = f"step {step}: the objective on held-out prompts is {figures['objective']}"
        raise diverged(session, "ppo", why, answers.batch, {"scores": answers.scores, "kl": answers.kl})
    return answers, figures


def log_evaluation(session: Session, contest: Contest, step: int, answers: Answers, figures: dict[str, float]) -> None:
    """Figures into the metrics, and answers for people to read."""
    for row in contest.rows(answers, WATCHED_PROMPTS):
        session.run_dir.watched.append("ppo", step, **row)
    session.metrics.append("ppo", step, **{f"eval/{name}": value for name, value in figures.items()})
