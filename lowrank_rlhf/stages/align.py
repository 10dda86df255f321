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
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.allocator import release_freed_memory
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.run.progress import Bar
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.dpo import DpoTask
from lowrank_rlhf.training.nan_recovery import RollBack, SkipReport
from lowrank_rlhf.training.policy_checkpoints import PolicyCheckpoints, PolicyState
from lowrank_rlhf.training.policy_roles import keep_if_best, load_roles, save_policies
from lowrank_rlhf.training.reward_data import read_groups
from lowrank_rlhf.training.rloo_grpo import OnlineTask
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
from lowrank_rlhf.training.trl_bridge import trl_bridge
from lowrank_rlhf.training.trl_loop import AtomicAdamW, FiniteGuard, loop_settings, schedule, train
from lowrank_rlhf.training.trl_task import Task


@dataclass
class _AlignTraining:
    """Policy training by a task; only `state` and the task's own notes change."""

    session: Session
    evaluation: PolicyEvaluation
    task: Task
    optimizer: torch.optim.Optimizer
    checkpoints: PolicyCheckpoints
    report: SkipReport
    state: PolicyState


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
    optimizer = AtomicAdamW(roles.parameters(Role.POLICY), lr=config.align.learning_rate, weight_decay=0.0)
    logs = (session.metrics, session.run_dir.watched)
    checkpoints = PolicyCheckpoints(
        session.work("ppo"), roles, {Role.POLICY: optimizer}, logs, kl_coef=config.ppo.kl_coef
    )
    report = SkipReport("ppo", "align.learning_rate", session.run_dir, session.progress, session.base)
    state, _ = checkpoints.resume()
    training = _AlignTraining(session, evaluation, task, optimizer, checkpoints, report, state)
    start, first = time.monotonic(), training.state.step
    with session.progress.track("ppo", task.steps, "steps", first) as bar:
        _train(training, bar)
    state, seconds = training.state, (time.monotonic() - start) / max(1, task.steps - first)
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
    config = session.config
    if config.align.algorithm != "dpo":
        return OnlineTask(session.roles, session.prompts[0], config, scale)
    groups, note = read_groups(session.base, session.run_dir.path, config.model.max_length)
    if note:
        session.progress.say(f"  {note}")
    return DpoTask(session.roles, groups, config.align, config.seed)


def _train(training: _AlignTraining, bar: Bar) -> None:
    """All steps that are left, each evaluation and each checkpoint at its step."""
    session, task = training.session, training.task
    while True:
        try:
            _evaluate_if_due(training)
            if training.state.step == task.steps:
                return
            session.base.limits.retry(lambda: _go_on(training, bar), task.width)
        except RollBack:
            training.state, _ = training.checkpoints.roll_back(training.state)
            bar.advance(training.state.step - bar.count)
        except Stopped:
            state = training.state
            save = partial(training.checkpoints.save, state)
            state.recovery.save_if_stopped(session.stop, "ppo", save, f"at step {state.step}")
            raise


def _evaluate_if_due(training: _AlignTraining) -> None:
    """An evaluation, unless this step had it before a stop, and a checkpoint.

    The row in the metrics comes last: from then on the evaluation counts as made.
    """
    session, state, config = training.session, training.state, training.session.config.ppo
    last = state.step == training.task.steps
    due, save = (last or state.step % every == 0 for every in (config.evaluate_every, config.save_every))
    rows = session.metrics.read("ppo") if due else ()
    if not due or any(row["step"] == state.step and "eval/kl" in row for row in rows):
        if save and not state.recovery.in_a_row:  # a roll-back must find a checkpoint from before the skipped steps
            training.checkpoints.save(state)
        return
    answers, figures = training.evaluation.evaluate(state.step, config, training.report.diverged)
    if is_due(state.claims, "kl_is_zero"):
        require(state.claims, "kl_is_zero", SENTENCES["kl_is_zero"], answers.max_token_difference, MAX_TOKEN_DIFFERENCE)
    keep_if_best(session.roles, session.work("ppo"), state, figures, session.config)
    if not state.recovery.in_a_row:
        training.checkpoints.save(state)
    session.run_dir.watched.truncate("ppo", state.step - 1)  # a kill may have left some of this step's
    training.evaluation.log(session.run_dir, state.step, answers, figures)


def _go_on(training: _AlignTraining, bar: Bar) -> None:
    """TRL's steps up to the next evaluation or checkpoint; called again it goes on with the step that broke off."""
    session, task, state = training.session, training.task, training.state
    config, roles, done = session.config, session.roles, state.step
    stops = [(done // every + 1) * every for every in (config.ppo.evaluate_every, config.ppo.save_every)]
    until = min(task.steps, *stops)
    guard = FiniteGuard(roles)

    def share(step: int) -> float:
        return min(1.0, (step + done + 1) / (config.align.warmup_steps + 1)) * (1 - (step + done) / task.steps)

    rates = schedule(training.optimizer, state.recovery.rate * config.align.learning_rate, share)
    per_pass = rows_per_pass(config.align.batch_size, task.width, session.base.limits.tokens)
    settings = loop_settings(
        session.base,
        session.work("ppo") / "trl",
        session.seed("ppo"),
        rows=config.align.batch_size,
        rows_per_pass=per_pass,
        steps=until - done,
    )
    with trl_bridge(roles, task.generate) as bridge:
        trainer = task.trainer(
            bridge,
            guard,
            settings | {"max_grad_norm": config.align.max_grad_norm},
            range(done, until),
            optimizers=(training.optimizer, rates),
            callbacks=[guard, _PolicyCallback(training, guard, bar)],
        )
        load_role(roles, Role.REFERENCE, session.run_dir.artifact("adapters/sft"))  # TRL copied the policy onto it
        train(roles, bridge, trainer, guard)
    release_freed_memory()


class _PolicyCallback(TrainerCallback):
    """Callback for state, metrics, progress, the first step's self-check and skipped steps."""

    def __init__(self, training: _AlignTraining, guard: FiniteGuard, bar: Bar) -> None:
        self.training, self.guard, self.bar = training, guard, bar
        self.since = time.monotonic()

    def on_step_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - transformers' signature
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        self.since = time.monotonic()
        self.training.task.begin(self.training.state.step)

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
        session, task, current = self.training.session, self.training.task, self.training.state
        current.step += 1
        if self.guard.problem is not None:
            session.metrics.append("ppo", current.step, skipped=1.0)
            self.bar.advance(1)
            current.recovery.skip(self.training.report, current.step, self.guard.problem, task.batch())
            return
        current.recovery.complete()
        error = task.first_error(logs)
        if error is not None and is_due(current.claims, "reference_is_sft"):
            require(current.claims, "reference_is_sft", task.claim, error, task.tolerance)
        figures = task.figures(logs)
        before = sum(seconds for name, seconds in figures.items() if name.startswith("time/"))
        figures["time/policy_update"] = time.monotonic() - self.since - before
        session.metrics.append("ppo", current.step, **figures, skipped=0.0)
        shown = {"score": "objective/scores", "kl": "objective/kl", "loss": "policy/loss"}
        self.bar.advance(1, **{name: figures[key] for name, key in shown.items() if key in figures})
