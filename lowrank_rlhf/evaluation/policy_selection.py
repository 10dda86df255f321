"""What all algorithms that make the policy share: the roles they begin with, evaluations, and the best policy."""

import math
import shutil
from collections.abc import Sequence

import torch

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import StageFailed
from lowrank_rlhf.evaluation.compare import Answers, Contest
from lowrank_rlhf.models.allocator import release_freed_memory
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.storage import load_role, save_role
from lowrank_rlhf.run import fault_points
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.nan_recovery import diverged
from lowrank_rlhf.training.policy_checkpoints import State
from lowrank_rlhf.training.reward_data import about_reward
from lowrank_rlhf.training.rollout import RewardScale
from lowrank_rlhf.training.self_checks import claim

KL_IS_0 = "KL(policy || SFT) is 0 at step 0"

MOST_TOKEN_DIFFERENCE = 1e-4
"""Nats by which policy and reference may differ at any token while they are the same: for other kernels' rounding."""

ENDLESS = 20.0
"""What a policy loses in the choice of the best if all its answers run on and SFT's don't: .16 for one of 128, a good
part of what two evaluations differ by, and much less than what training gains (decision 0007)."""

WATCHED_PROMPTS = 8
"""Held-out prompts whose answers are kept at each evaluation, for people to read how they change."""


def load_roles(session: Session) -> RewardScale:
    """Policy, reference and reward model from the finished stages; refuses a reward model that is known to be weak."""
    config, roles, artifact = session.config, session.roles, session.run_dir.artifact
    about = about_reward(artifact("adapters/reward"))
    if about["weak"] and not config.ppo.accept_weak_reward:
        raise StageFailed(
            f"ppo: {about['weak']}. {config.align.algorithm.upper()} would only learn to please its mistakes: rank "
            "more answers, or set ppo.accept_weak_reward: true"
        )
    load_role(roles, Role.POLICY, artifact("adapters/sft"))
    roles.copy(Role.POLICY, Role.REFERENCE)
    load_role(roles, Role.REWARD, artifact("adapters/reward"))
    if not config.ppo.normalize_score:
        return RewardScale(about["pooling"], 0.0, 1.0)
    return RewardScale(about["pooling"], about["score_mean"], about["score_std"])


def save_policies(session: Session) -> None:
    """The stage's outputs: `adapters/policy-last` as the role is now, and `adapters/policy`, the best."""
    work = session.work("ppo")
    save_role(session.roles, Role.POLICY, work / "adapters" / "policy-last")
    # A copy: killed from here on, the stage comes through this line again.
    shutil.copytree(work / "best", work / "adapters" / "policy", dirs_exist_ok=True)
    fault_points.point("policy: the best one copied")


def shuffled(session: Session, count: int, needed: int) -> list[int]:
    """`needed` indices below `count`: one seeded permutation after another."""
    order: list[int] = []
    while len(order) < needed:
        generator = torch.Generator().manual_seed(session.seed("ppo", "prompts", len(order)))
        order += torch.randperm(count, generator=generator).tolist()
    return order[:needed]


def check_claim(state: State, text: str, error: float, tolerance: float) -> None:
    """Note what was found, and stop where it is wrong: everything after would be."""
    state.claims.append(claim(text, error, error <= tolerance))
    if not error <= tolerance:  # NaN is wrong too
        raise StageFailed(
            f"ppo: {text}: it is off by {error:.3g}. Sampling, reference and training don't see the same model; "
            "this is a bug here or in a library, please report it with the run's env.json"
        )


def claimed(state: State) -> Sequence[str]:
    """The claims that were found to hold so far."""
    return [claim["claim"] for claim in state.claims]


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


def _steps_as_sft(config: Config) -> int:
    """How many steps leave the policy as it begins. The last step is none of them (`PpoConfig.conflicts`)."""
    return config.ppo.critic_warmup_steps if config.align.algorithm == "ppo" else 0


def keep_if_best(session: Session, state: State, figures: dict[str, float]) -> None:
    """Keep the policy as `best` in the work folder if it is worth the most so far, on held-out prompts.

    Its worth is PPO's own objective, the reward model's score less the KL penalty, and less `ENDLESS` for the share of
    answers that run on where SFT's end by themselves: a few of those hardly show in a mean. Choosing by the judge would
    spend the held-out judgement that the report is about.
    """
    if state.step == 0:
        state.sft_eos_rate = figures["eos_rate"]
    if state.step <= _steps_as_sft(session.config):
        return  # the figures of SFT itself: not a policy that training made
    assert state.sft_eos_rate is not None  # noqa: S101 - from step 0
    worth = figures["objective"] - ENDLESS * max(0.0, state.sft_eos_rate - figures["eos_rate"])
    if state.best_objective is None or worth > state.best_objective:
        state.best_step, state.best_objective = state.step, worth
        save_role(session.roles, Role.POLICY, session.work("ppo") / "best")
