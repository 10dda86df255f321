"""Stage 3 with `align.algorithm` rloo, grpo or dpo: the policy by one of TRL's trainers, on the run's own adapters.

TRL trains from one evaluation or checkpoint to the next; everything that lasts longer is kept here, as for PPO.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lowrank_rlhf.errors import Stopped
from lowrank_rlhf.evaluation.policy_evaluation import PolicyEvaluation, open_gold_judge
from lowrank_rlhf.maths.batching import rows_per_pass
from lowrank_rlhf.models.allocator import release_freed_memory
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.storage import load_role
from lowrank_rlhf.run.progress import Bar
from lowrank_rlhf.session import Session
from lowrank_rlhf.training import policy_checkpoints
from lowrank_rlhf.training.dpo import Comparing
from lowrank_rlhf.training.nan_recovery import RollBack, diverged
from lowrank_rlhf.training.policy_checkpoints import Learners, State
from lowrank_rlhf.training.policy_roles import keep_if_best, load_roles, save_policies
from lowrank_rlhf.training.rloo_grpo import Sampling
from lowrank_rlhf.training.rollout import RewardScale
from lowrank_rlhf.training.self_checks import (
    MAX_TOKEN_DIFFERENCE,
    SENTENCES,
    base_unchanged,
    checksums,
    is_due,
    others_unchanged,
    require,
)
from lowrank_rlhf.training.trl_bridge import lent
from lowrank_rlhf.training.trl_loop import FiniteSteps, WholeSteps, loop_settings, schedule, train
from lowrank_rlhf.training.trl_task import Task


@dataclass
class _Setting:
    """What the stage's parts share; only `state` and the task's notes change."""

    session: Session
    evaluation: PolicyEvaluation
    task: Task
    learners: Learners
    state: State

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.learners[Role.POLICY]


def run(session: Session) -> dict[str, Any]:
    """Make `adapters/policy` (the best on held-out prompts) and `adapters/policy-last`."""
    config, roles = session.config, session.roles
    name = config.align.algorithm.upper()
    before = session.base.checksum()
    scale = load_roles(roles, session.run_dir.artifact("adapters"), config)
    others = checksums(roles, [Role.POLICY])
    task = _task(session, scale)
    gold = open_gold_judge(session.config, session.run_dir.path, session.progress, session.stop)
    evaluation = PolicyEvaluation.against_sft(roles, session.prompts[1], session.config, scale, gold)
    learners = {Role.POLICY: WholeSteps(roles.parameters(Role.POLICY), lr=config.align.learning_rate, weight_decay=0.0)}
    setting = _Setting(session, evaluation, task, learners, policy_checkpoints.resume(session, learners)[0])
    start, first = time.monotonic(), setting.state.step
    with session.progress.track("ppo", task.steps, "steps", first) as bar:
        _train(setting, bar)
    state, seconds = setting.state, (time.monotonic() - start) / max(1, task.steps - first)
    save_policies(roles, session.work("ppo"))
    return {
        "algorithm": config.align.algorithm,
        "steps": task.steps,
        "best_step": state.best_step,
        "seconds_per_step": seconds,
        "gold": gold and gold.judge.name,
        "claims": [
            claim.model_dump()
            for claim in (
                *state.claims,
                base_unchanged(session.base, name, before),
                others_unchanged(roles, name, others),
            )
        ],
    }


def _task(session: Session, scale: RewardScale) -> Task:
    return Comparing(session) if session.config.align.algorithm == "dpo" else Sampling(session, scale)


def _train(setting: _Setting, bar: Bar) -> None:
    """All steps that are left, each evaluation and each checkpoint at its step."""
    session, task = setting.session, setting.task
    while True:
        try:
            _evaluate_if_due(setting)
            if setting.state.step == task.steps:
                return
            session.base.limits.retry(lambda: _go_on(setting, bar), task.width)
        except RollBack:
            setting.state, _ = policy_checkpoints.roll_back(session, setting.learners, setting.state)
            bar.advance(setting.state.step - bar.count)
        except Stopped:
            state = setting.state
            save = partial(policy_checkpoints.save, session, setting.learners, state)
            state.breakdowns.stopped(session, "ppo", save, f"at step {state.step}")
            raise


def _evaluate_if_due(setting: _Setting) -> None:
    """An evaluation, unless this step had it before a stop, and a checkpoint.

    The row in the metrics comes last: from then on the evaluation counts as made.
    """
    session, state, config = setting.session, setting.state, setting.session.config.ppo
    last = state.step == setting.task.steps
    due, save = (last or state.step % every == 0 for every in (config.evaluate_every, config.save_every))
    rows = session.metrics.read("ppo") if due else ()
    if not due or any(row["step"] == state.step and "eval/kl" in row for row in rows):
        if save and not state.breakdowns.in_a_row:  # else there would be no good one left
            policy_checkpoints.save(session, setting.learners, state)
        return
    evaluation = setting.evaluation
    answers, figures = evaluation.evaluate(state.step, config, partial(diverged, session, "ppo"))
    if is_due(state.claims, "kl_is_zero"):
        require(state.claims, "kl_is_zero", SENTENCES["kl_is_zero"], answers.max_token_difference, MAX_TOKEN_DIFFERENCE)
    keep_if_best(session.roles, session.work("ppo"), state, figures, session.config)
    if not state.breakdowns.in_a_row:
        policy_checkpoints.save(session, setting.learners, state)
    session.run_dir.watched.truncate("ppo", state.step - 1)  # a kill may have left some of this step's
    evaluation.log(session.run_dir, state.step, answers, figures)


def _go_on(setting: _Setting, bar: Bar) -> None:
    """TRL's steps up to the next evaluation or checkpoint; called again it goes on with the step that broke off."""
    session, task, state = setting.session, setting.task, setting.state
    config, roles, done = session.config, session.roles, state.step
    stops = [(done // every + 1) * every for every in (config.ppo.evaluate_every, config.ppo.save_every)]
    until = min(task.steps, *stops)
    finite = FiniteSteps(roles)

    def share(step: int) -> float:
        return min(1.0, (step + done + 1) / (config.align.warmup_steps + 1)) * (1 - (step + done) / task.steps)

    rates = schedule(setting.optimizer, state.breakdowns.rate * config.align.learning_rate, share)
    per_pass = rows_per_pass(config.align.batch_size, task.width, session.base.limits.tokens)
    settings = loop_settings(session, "ppo", config.align.batch_size, per_pass, until - done)
    with lent(roles, task.generate) as loan:
        trainer = task.trainer(
            loan,
            finite,
            settings | {"max_grad_norm": config.align.max_grad_norm},
            range(done, until),
            optimizers=(setting.optimizer, rates),
            callbacks=[finite, _Watcher(setting, finite, bar)],
        )
        load_role(roles, Role.REFERENCE, session.run_dir.artifact("adapters/sft"))  # TRL copied the policy onto it
        train(roles, loan, trainer, finite)
    release_freed_memory()


class _Watcher(TrainerCallback):
    """State, metrics, progress, the first step's claim and skipped steps for TRL's loop."""

    def __init__(self, setting: _Setting, finite: FiniteSteps, bar: Bar) -> None:
        self.setting, self.finite, self.bar = setting, finite, bar
        self.since = time.monotonic()

    def on_step_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - transformers' signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        self.since = time.monotonic()
        self.setting.task.begin(self.setting.state.step)

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002 - transformers' signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        session, task, ours = self.setting.session, self.setting.task, self.setting.state
        ours.step += 1
        if self.finite.problem is not None:
            session.metrics.append("ppo", ours.step, skipped=1.0)
            self.bar.advance(1)
            ours.breakdowns.skipped(session, "ppo", ours.step, self.finite.problem, task.batch())
            return
        ours.breakdowns.made()
        off = task.first(logs)
        if off is not None and is_due(ours.claims, "reference_is_sft"):
            require(ours.claims, "reference_is_sft", task.claim, off, task.tolerance)
        figures = task.figures(logs)
        before = sum(seconds for name, seconds in figures.items() if name.startswith("time/"))
        figures["time/policy_update"] = time.monotonic() - self.since - before
        session.metrics.append("ppo", ours.step, **figures, skipped=0.0)
        shown = {"score": "objective/scores", "kl": "objective/kl", "loss": "policy/loss"}
        self.bar.advance(1, **{name: figures[key] for name, key in shown.items() if key in figures})
