"""Roles at the start and at the end of policy training, and the choice of the best policy between them."""

import shutil
from pathlib import Path

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import StageFailed
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.storage import save_role
from lowrank_rlhf.run import fault_points
from lowrank_rlhf.training.policy_checkpoints import PolicyState
from lowrank_rlhf.training.reward_data import about_reward
from lowrank_rlhf.training.rollout import RewardScale

TRUNCATION_PENALTY = 20.0
"""Deduction from the objective if all answers of a policy are cut off at `sample.max_new_tokens` and none of SFT's are:
0.16 for one answer in 128, much of the difference between two evaluations, and much less than training gains."""


def load_roles(roles: Roles, adapters: Path, config: Config) -> RewardScale:
    """Load policy, reference and reward model from a run's `adapters` folder.

    Raises `StageFailed` for a weak reward model, unless `ppo.accept_weak_reward` is set.
    """
    about = about_reward(adapters / "reward")
    if about["weak"] and not config.ppo.accept_weak_reward:
        raise StageFailed(
            f"ppo: {about['weak']}, so {config.align.algorithm.upper()} would only learn its mistakes. Rank more "
            "answers, or set ppo.accept_weak_reward: true"
        )
    load_role(roles, Role.POLICY, adapters / "sft")
    roles.copy(Role.POLICY, Role.REFERENCE)
    load_role(roles, Role.REWARD, adapters / "reward")
    if not config.ppo.normalize_score:
        return RewardScale(about["pooling"], 0.0, 1.0)
    return RewardScale(about["pooling"], about["score_mean"], about["score_std"])


def save_policies(roles: Roles, work: Path) -> None:
    """Write the stage's outputs: `adapters/policy-last`, the policy now, and `adapters/policy`, the best one."""
    save_role(roles, Role.POLICY, work / "adapters" / "policy-last")
    # Copied, not moved: a stage killed after this line runs it again.
    shutil.copytree(work / "best", work / "adapters" / "policy", dirs_exist_ok=True)
    fault_points.point("policy: the best one copied")


def keep_if_best(roles: Roles, work: Path, state: PolicyState, figures: dict[str, float], config: Config) -> None:
    """Save the policy as `best` in the work folder if its objective on held-out prompts is the highest so far.

    The objective is PPO's own, the reward model's score less the KL penalty, less `TRUNCATION_PENALTY` times the share
    of answers that are cut off where SFT's are not: a few of those hardly change a mean. The choice does not use the
    judge, so that its verdict on held-out prompts stays unbiased.
    """
    if state.step == 0:
        state.sft_eos_rate = figures["eos_rate"]
    if state.step <= _steps_as_sft(config):
        return  # the figures of SFT itself: training has not moved the policy yet
    assert state.sft_eos_rate is not None  # noqa: S101 - set at step 0
    objective = figures["objective"] - TRUNCATION_PENALTY * max(0.0, state.sft_eos_rate - figures["eos_rate"])
    if state.best_objective is None or objective > state.best_objective:
        state.best_step, state.best_objective = state.step, objective
        save_role(roles, Role.POLICY, work / "best")


def _steps_as_sft(config: Config) -> int:
    """Return the number of first steps that do not move the policy; never all steps (`PpoConfig.conflicts`)."""
    return config.ppo.critic_warmup_steps if config.align.algorithm == "ppo" else 0
