"""Roles at the start and at the end of policy training, and the policy that is kept between them."""

import shutil
from pathlib import Path

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import Fault, StageFailed, WaitingForPeople
from lowrank_rlhf.maths.policy_choice import Evaluated, choose
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.storage import save_role
from lowrank_rlhf.preferences.project import NothingToRank, open_project, run_command
from lowrank_rlhf.run import fault_points
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.training.policy_checkpoints import PolicyState
from lowrank_rlhf.training.reward_data import about_reward
from lowrank_rlhf.training.rollout import RewardScale

_MORE = {
    "judge": "Raise sample.prompts, with more prompts in data.prompts",
    "human": "Add prompts and rank their answers",
    "dataset": "Add comparisons to rank.dataset",
}
"""Remedy for a weak reward model, by `rank.source`."""


def load_roles(roles: Roles, run_dir: RunDir, config: Config) -> RewardScale | None:
    """Load policy, reference and reward model for a round's training; None if no reward model is used.

    The policy is the last round's, SFT in the first. Raises `StageFailed` for a weak reward model, or
    `WaitingForPeople` if people have prompts left to rank, unless `ppo.accept_weak_reward` is set.
    """
    if not config.ppo.uses_reward_model:
        _load_policies(roles, run_dir)
        return None
    about = about_reward(run_dir.artifact("adapters/reward"))
    if about["weak"] and not config.ppo.accept_weak_reward:
        if config.rank.source == "human":
            _wait_for_more_rankings(about["weak"], run_dir.run)
        raise StageFailed(_refusal(about["weak"], run_dir, config))
    _load_policies(roles, run_dir)
    load_role(roles, Role.REWARD, run_dir.artifact("adapters/reward"))
    return RewardScale.of(about, config.ppo.normalize_score)


def _refusal(weak: str, run_dir: RunDir, config: Config) -> Fault:
    """Return the refusal of a weak reward model; `weak` is the weakness as a sentence."""
    tested, why = run_dir.results().reward, weak
    if tested and tested.weakness:  # version 0.1 wrote the sentence only
        longer = tested.longer_wins is None or tested.longer_wins >= 0.5
        rule = Fault("rule.longer", "longer") if longer else Fault("rule.shorter", "shorter")
        why = Fault(f"weakness.{tested.weakness}", "{weak}", weak=weak, rule=rule)
    return Fault(
        f"weak_reward_{config.rank.source}",
        "ppo: {why}, so {algorithm} would only learn its mistakes. {more}, or set ppo.accept_weak_reward: true",
        why=why, algorithm=config.align.algorithm.upper(), more=_MORE[config.rank.source],
    )  # fmt: skip


def frozen_roles(config: Config) -> list[Role]:
    """Return the roles that policy training loads and does not train."""
    return [Role.REFERENCE, *([Role.REWARD] if config.ppo.uses_reward_model else [])]


def last_policy(run_dir: RunDir) -> Path | None:
    """Return the adapter from which a later round starts; None in the first."""
    return run_dir.round(run_dir.number - 1).artifact("adapters/policy") if run_dir.number > 1 else None


def _load_policies(roles: Roles, run_dir: RunDir) -> None:
    load_role(roles, Role.POLICY, run_dir.artifact("adapters/sft"))
    roles.copy(Role.POLICY, Role.REFERENCE)
    if last := last_policy(run_dir):
        load_role(roles, Role.POLICY, last)


def _wait_for_more_rankings(weak: str, run: Path) -> None:
    """Raise `WaitingForPeople` if the run has prompts left to rank."""
    try:
        project = open_project(run)
    except NothingToRank:
        return
    ranked, wanted = project.store.ranked_prompts(), project.needed
    if ranked < wanted:
        raise WaitingForPeople(
            f"Waiting for people: {weak}. About {wanted - ranked} more ranked prompts may be enough. Rank with "
            f"`python -m lowrank_rlhf label {run}`; then resume with\n  {run_command(run)} --redo {project.rank_stage}"
        )


def save_policies(roles: Roles, work: Path, state: PolicyState) -> None:
    """Write the stage's outputs: `adapters/policy-last`, the policy now, and `adapters/policy`, the kept one.

    `keep_step` has put the policies of earlier steps into the former.
    """
    last = work / "adapters" / "policy-last"
    save_role(roles, Role.POLICY, last)
    best_is_kept = state.best is not None and state.best.step == state.kept_step
    # Copied, not moved: a stage killed after this line runs it again.
    policy, steps = work / "adapters" / "policy", shutil.ignore_patterns("step-*")
    shutil.copytree(work / "best" if best_is_kept else last, policy, ignore=steps, dirs_exist_ok=True)
    fault_points.point("policy: the kept one copied")


def choose_policy(
    roles: Roles,
    run_dir: RunDir,
    state: PolicyState,
    objectives: list[float],
    ended: list[bool],
    sft_ended: list[bool],
    config: Config,
) -> None:
    """Choose between the policy now, evaluated on held-out prompts, and the best one before (`policy_choice.choose`).

    The weights of the best one are saved as `best` in the work folder. `objectives`, (N,), are PPO's own: the reward
    model's shaped score less the KL penalty. The choice does not use the judge, so that its verdict on held-out prompts
    stays unbiased. In a later round the last round's policy, evaluated at step 0, is the first candidate.
    """
    if state.step == 0:
        state.sft_ended = ended if run_dir.number == 1 else sft_ended  # in the first round the policy is SFT then
    if state.step <= _steps_unmoved(config) and not (state.step == 0 and run_dir.number > 1):
        return  # the figures of the policy that training starts from
    last = Evaluated(state.step, objectives, ended)
    kept, best = choose(state.best, last, state.sft_ended or ())
    state.kept_step, state.best = kept.step, best
    if best is last:
        save_role(roles, Role.POLICY, run_dir.work("ppo") / "best")


def _steps_unmoved(config: Config) -> int:
    """Return the number of first steps that do not move the policy; never all steps (`PpoConfig.conflicts`)."""
    return config.ppo.critic_warmup_steps if config.align.algorithm == "ppo" else 0
