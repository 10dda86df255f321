"""Stage 3 with `align.algorithm` rloo, grpo or dpo: the policy by one of TRL's trainers, on the run's own adapters.

TRL trains from one evaluation or checkpoint to the next; this module keeps everything longer-lived, as for PPO.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import RewardFailed, Stopped
from lowrank_rlhf.evaluation.policy_evaluation import PolicyEvaluation, judge_names, open_followed_judges
from lowrank_rlhf.maths.batching import rows_per_pass
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.allocator import release_freed_memory
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Bar, Progress, StopRequest
from lowrank_rlhf.run.records import Prompt
from lowrank_rlhf.run.results import PolicyResult
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.dpo import DpoTask
from lowrank_rlhf.training.nan_recovery import RollBack, SkipReport
from lowrank_rlhf.training.policy_checkpoints import PolicyCheckpoints, PolicyState, keep_step
from lowrank_rlhf.training.policy_roles import choose_policy, frozen_roles, last_policy, load_roles, save_policies
from lowrank_rlhf.training.reward_data import read_groups
from lowrank_rlhf.training.rewards.reward_sum import Scorer, open_scorer, with_rewards
from lowrank_rlhf.training.rloo_grpo import OnlineTask
from lowrank_rlhf.training.self_checks import (
    MAX_TOKEN_DIFFERENCE,
    SENTENCES,
    check_start,
    checksums,
    is_due,
    require,
    weights_unchanged,
)
from lowrank_rlhf.training.trl_bridge import trl_bridge
from lowrank_rlhf.training.trl_loop import AtomicAdamW, FiniteGuard, loop_settings, schedule, train
from lowrank_rlhf.training.trl_task import Task


@dataclass
class _AlignTraining:
    """Policy training by a task; only `state` and the task's own notes change."""

    config: Config
    roles: Roles
    run_dir: RunDir
    stop: StopRequest
    evaluation: PolicyEvaluation
    task: Task
    optimizer: torch.optim.Optimizer
    checkpoints: PolicyCheckpoints
    report: SkipReport
    state: PolicyState


def run(session: Session) -> PolicyResult:
    """Write `adapters/policy` (the kept one) and `adapters/policy-last`."""
    config, roles, run_dir = session.config, session.load_roles(), session.run_dir
    name = config.align.algorithm.upper()
    before = roles.base.checksum()
    scale = load_roles(roles, run_dir, config)
    others = checksums(roles, frozen_roles(config))
    places = (run_dir.run, session.progress, session.stop)
    scorer = open_scorer(config, scale, session.data.prompts, *places)
    judges = open_followed_judges(config, *places)
    work = session.work("ppo")
    evaluation = PolicyEvaluation.against_sft(
        roles, session.prompts.validation, config, scorer, judges, work, last_policy(run_dir)
    )
    seeded = config.model_copy(update={"seed": session.round_seed})
    task = _task(roles, session.prompts.training, run_dir, seeded, evaluation.scorer, session.progress)
    optimizer = AtomicAdamW(roles.parameters(Role.POLICY), lr=config.align.learning_rate, weight_decay=0.0)
    checkpoints = PolicyCheckpoints(work, roles, {Role.POLICY: optimizer}, run_dir.logs, kl_coef=config.ppo.kl_coef)
    report = SkipReport("ppo", "align.learning_rate", run_dir, session.progress, roles.base)
    state, _ = checkpoints.resume()
    training = _AlignTraining(
        seeded, roles, run_dir, session.stop, evaluation, task, optimizer, checkpoints, report, state
    )
    start, first = time.monotonic(), training.state.step
    with session.progress.track("ppo", task.steps, "steps", first) as bar:
        _train(training, bar)
    state, seconds = training.state, (time.monotonic() - start) / max(1, task.steps - first)
    save_policies(roles, work, state)
    gold, second = judge_names(judges)
    result = PolicyResult(
        algorithm=config.align.algorithm,
        steps=task.steps,
        best_step=state.kept_step,
        seconds_per_step=seconds,
        gold=gold,
        second_judge=second,
        claims=(*state.claims, *weights_unchanged(roles, name, before, others)),
    )
    return with_rewards(result, evaluation.scorer)


def _task(
    roles: Roles, prompts: Sequence[Prompt], run_dir: RunDir, config: Config, scorer: Scorer, progress: Progress
) -> Task:
    if config.align.algorithm != "dpo":
        return OnlineTask(roles, prompts, config, scorer)
    groups, note = read_groups(roles.base, run_dir, config.model.max_length)
    if note:
        progress.say(f"  {note}")
    return DpoTask(roles, groups, config.align, config.seed)


def _train(training: _AlignTraining, bar: Bar) -> None:
    """Train the remaining steps, with each evaluation and each checkpoint at its step."""
    task = training.task
    while True:
        try:
            _evaluate_if_due(training)
            if training.state.step == task.steps:
                return
            training.roles.base.limits.retry(lambda: _train_to_next(training, bar), task.width)
        except RollBack:
            training.state, _ = training.checkpoints.roll_back(training.state)
            bar.advance(training.state.step - bar.count)
        except (Stopped, RewardFailed):
            state = training.state
            save = partial(training.checkpoints.save, state)
            state.recovery.save_if_stopped(training.stop, "ppo", save, f"at step {state.step}")
            raise


def _evaluate_if_due(training: _AlignTraining) -> None:
    """Evaluate, unless this step was evaluated before a stop, and save a checkpoint.

    The row in the metrics comes last: from then on the evaluation counts as done.
    """
    run_dir, state, config = training.run_dir, training.state, training.config.ppo
    last = state.step == training.task.steps
    due, save = (last or state.step % every == 0 for every in (config.evaluate_every, config.save_every))
    rows = run_dir.metrics.read("ppo") if due else ()
    if not due or any(row["step"] == state.step and "eval/kl" in row for row in rows):
        if save and not state.recovery.in_a_row:  # a roll-back must find a checkpoint from before the skipped steps
            training.checkpoints.save(state)
        return
    answers, figures = training.evaluation.evaluate(state.step, config, training.report.diverged)
    check_start(state.claims, answers.last_difference)
    if run_dir.number == 1 and is_due(state.claims, "kl_is_zero"):
        require(state.claims, "kl_is_zero", SENTENCES["kl_is_zero"], answers.max_token_difference, MAX_TOKEN_DIFFERENCE)
    objectives = training.evaluation.objectives(answers, config).tolist()
    choose_policy(
        training.roles, run_dir, state, objectives, answers.ended, training.evaluation.sft_ended, training.config
    )
    keep_step(training.roles, run_dir, state.step, training.task.steps, config.evaluate_every)
    if not state.recovery.in_a_row:
        training.checkpoints.save(state)
    if state.step == 0 and (problem := training.evaluation.clipping(answers, config.score_clip)):
        training.report.warned(problem)
    run_dir.watched.truncate("ppo", state.step - 1)  # a kill may have left some of this step's
    training.evaluation.log(run_dir, state.step, answers, figures)


def _train_to_next(training: _AlignTraining, bar: Bar) -> None:
    """Train with TRL up to the next evaluation or checkpoint; called again it resumes with the interrupted step."""
    task, state, run_dir = training.task, training.state, training.run_dir
    config, roles, done = training.config, training.roles, state.step
    stops = [(done // every + 1) * every for every in (config.ppo.evaluate_every, config.ppo.save_every)]
    until = min(task.steps, *stops)
    guard = FiniteGuard(roles)

    def share(step: int) -> float:
        return min(1.0, (step + done + 1) / (config.align.warmup_steps + 1)) * (1 - (step + done) / task.steps)

    rates = schedule(training.optimizer, state.recovery.rate * config.align.learning_rate, share)
    per_pass = rows_per_pass(config.align.batch_size, task.width, roles.base.limits.tokens)
    settings = loop_settings(
        roles.base,
        run_dir.work("ppo") / "trl",
        derive_seed(config.seed, "ppo"),
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
        load_role(roles, Role.REFERENCE, run_dir.artifact("adapters/sft"))  # TRL copied the policy onto it
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
        metrics, task, current = self.training.run_dir.metrics, self.training.task, self.training.state
        current.step += 1
        if self.guard.problem is not None:
            metrics.append("ppo", current.step, skipped=1.0)
            self.bar.advance(1)
            current.recovery.skip(self.training.report, current.step, self.guard.problem, task.batch())
            return
        current.recovery.complete()
        error = task.first_error(logs)
        first = self.training.run_dir.number == 1  # later rounds start elsewhere
        if first and error is not None and is_due(current.claims, "reference_is_sft"):
            require(current.claims, "reference_is_sft", task.claim, error, task.tolerance)
        figures = task.figures(logs)
        before = sum(seconds for name, seconds in figures.items() if name.startswith("time/"))
        figures["time/policy_update"] = time.monotonic() - self.since - before
        metrics.append("ppo", current.step, **figures, skipped=0.0)
        shown = {"score": "objective/scores", "kl": "objective/kl", "loss": "policy/loss"}
        self.bar.advance(1, **{name: figures[key] for name, key in shown.items() if key in figures})
