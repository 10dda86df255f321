"""Stage 3: PPO against the reward model with a KL penalty towards SFT."""

import copy
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch import Tensor

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import ModelNotFinite, RewardFailed, Stopped
from lowrank_rlhf.evaluation.policy_evaluation import PolicyEvaluation, judge_names, open_followed_judges
from lowrank_rlhf.maths.kl import adapt_kl_coef
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.maths.text import distinct_n
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.storage import save_role
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Bar, StopRequest
from lowrank_rlhf.run.records import Prompt, Sample, Score, read_jsonl
from lowrank_rlhf.run.results import PolicyResult
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.nan_recovery import RollBack, SkipReport
from lowrank_rlhf.training.policy_checkpoints import PolicyCheckpoints, PolicyState, StartedStep, keep_step
from lowrank_rlhf.training.policy_roles import choose_policy, frozen_roles, last_policy, load_roles, save_policies
from lowrank_rlhf.training.ppo_update import Optimizers, OptimizerSteps, update
from lowrank_rlhf.training.prompts import encode_prompts, max_prompt_tokens, shuffled_order
from lowrank_rlhf.training.rewards.reward_sum import open_scorer, score_responses, with_rewards
from lowrank_rlhf.training.rollout import RewardScale, Rollout, collect, shape_scores
from lowrank_rlhf.training.rollout_file import rollout_rows
from lowrank_rlhf.training.self_checks import (
    MAX_TOKEN_DIFFERENCE,
    SENTENCES,
    check_start,
    checksums,
    is_due,
    require,
    weights_unchanged,
)

MOST_RATIO_ERROR = 1e-3
"""The same forward on the same micro-batches gives the same bits on a CPU; a GPU's kernels may round otherwise."""


@dataclass(frozen=True)
class _PpoTraining:
    """Everything of PPO training that is the same in every step."""

    config: Config
    seed: int
    """Seed of the round's sampling and training."""
    roles: Roles
    run_dir: RunDir
    stop: StopRequest
    asked: list[Prompt]
    prompts: list[list[int]]
    """Tokens of the prompts asked."""
    baselines: Tensor | None
    order: list[int]
    """Indices of the prompts of all steps, one step after another."""
    scale: RewardScale | None
    evaluation: PolicyEvaluation
    optimizers: Optimizers
    checkpoints: PolicyCheckpoints
    report: SkipReport


def run(session: Session) -> PolicyResult:
    """Write `adapters/policy` (the kept one), `adapters/policy-last` and `adapters/critic`."""
    config, roles, run_dir, work = session.config.ppo, session.load_roles(), session.run_dir, session.work("ppo")
    before = roles.base.checksum()
    scale = _load_roles(roles, run_dir, session.config)
    others = checksums(roles, frozen_roles(session.config))
    places = (run_dir.run, session.progress, session.stop)
    judges = open_followed_judges(session.config, *places)
    scorer = open_scorer(session.config, scale, session.data.prompts, *places)
    evaluation = PolicyEvaluation.against_sft(
        roles, session.prompts.validation, session.config, scorer, judges, work, last_policy(run_dir)
    )
    optimizers = Optimizers.create(roles, config)
    checkpoints = PolicyCheckpoints(work, roles, optimizers.of_roles, run_dir.logs, config.kl_coef)
    rates = "ppo.learning_rate and ppo.critic_learning_rate"
    report = SkipReport("ppo", rates, run_dir, session.progress, roles.base)
    state, started = checkpoints.resume()
    asked, baselines = _prompts(session.prompts.training, run_dir, session.config, scale)
    prompts = encode_prompts(roles.base, asked, max_prompt_tokens(session.config))
    training = _PpoTraining(
        session.config,
        session.round_seed,
        roles,
        run_dir,
        session.stop,
        asked,
        prompts,
        baselines,
        shuffled_order(session.round_seed, len(prompts), config.steps * config.batch_size),
        scale,
        evaluation,
        optimizers,
        checkpoints,
        report,
    )
    start, first = time.monotonic(), state.step
    with session.progress.track("ppo", config.steps, "steps", state.step) as bar:
        state = _train(training, state, started, bar)
    seconds = (time.monotonic() - start) / max(1, config.steps - first)
    save_role(roles, Role.CRITIC, work / "adapters" / "critic")
    save_policies(roles, work, state)
    gold, second = judge_names(judges)
    result = PolicyResult(
        steps=config.steps,
        best_step=state.kept_step,
        seconds_per_step=seconds,
        gold=gold,
        second_judge=second,
        claims=(*state.claims, *weights_unchanged(roles, "PPO", before, others)),
    )
    return with_rewards(result, evaluation.scorer)


def _train(training: _PpoTraining, state: PolicyState, started: StartedStep, bar: Bar) -> PolicyState:
    """Run the remaining steps, with each evaluation and checkpoint at its step; return the last state."""
    config, checkpoints = training.config.ppo, training.checkpoints
    if state.sft_ended is None:
        _evaluate(training, state)
        checkpoints.save(state)
    while state.step < config.steps:
        try:
            state, figures = _save_if_stopped(training, state, started)
            started = StartedStep()
        except RollBack:
            state, started = checkpoints.roll_back(state)
            bar.advance(state.step - bar.count)
            continue
        shown = {"score": "objective/scores", "kl": "objective/kl", "tokens_per_second": "tokens_per_second"}
        bar.advance(1, **{name: figures[key] for name, key in shown.items() if key in figures})
        due = state.step % config.save_every == 0 or state.step == config.steps
        if due and not state.recovery.in_a_row:  # a roll-back must find a checkpoint from before the skipped steps
            checkpoints.save(state)
    return state


def _load_roles(roles: Roles, run_dir: RunDir, config: Config) -> RewardScale | None:
    """Load the four roles from the finished stages' adapters."""
    scale = load_roles(roles, run_dir, config)
    roles.copy(Role.REWARD if scale else Role.REFERENCE, Role.CRITIC)
    if config.ppo.critic_head == "zero":
        roles.new_head(Role.CRITIC, None)
    return scale


def _prompts(
    prompts: Sequence[Prompt], run_dir: RunDir, config: Config, scale: RewardScale | None
) -> tuple[list[Prompt], Tensor | None]:
    """Return the training prompts, and with `contrastive` the mean shaped score of the ranked answers to each.

    The scores are (P,) for P prompts, which are then the ranked ones only.
    """
    if not config.ppo.contrastive or scale is None:
        return list(prompts), None
    finished = {
        sample.id: sample.finished
        for each in run_dir.up_to_this
        for sample in read_jsonl(each.artifact("answers.jsonl"), Sample)
    }
    rows = list(read_jsonl(run_dir.artifact("scores.jsonl"), Score))
    scores = (torch.tensor([row.score for row in rows]) - scale.mean) / scale.std
    shaped = shape_scores(scores, torch.tensor([finished[row.sample_id] for row in rows]), config.ppo)
    of_prompt = defaultdict(list)
    for row, score in zip(rows, shaped.tolist(), strict=True):
        of_prompt[row.prompt_id].append(score)
    ranked = [prompt for prompt in prompts if prompt.id in of_prompt]
    baselines = torch.tensor([fmean(of_prompt[prompt.id]) for prompt in ranked])
    return ranked, baselines


def _save_if_stopped(
    training: _PpoTraining, state: PolicyState, started: StartedStep
) -> tuple[PolicyState, dict[str, float]]:
    """Run the next step; a stop inside it takes effect at once and saves its progress."""
    config, limits = training.config, training.roles.base.limits
    tokens, widest = limits.tokens, max(map(len, training.prompts)) + config.sample.max_new_tokens

    def attempt() -> tuple[PolicyState, dict[str, float]]:
        if limits.tokens != tokens:
            started.cut_again(config.ppo, limits)
        return _step(training, copy.deepcopy(state), started)

    try:
        return limits.retry(attempt, widest)
    except (Stopped, RewardFailed):
        save = partial(training.checkpoints.save, state, started)
        position = f"inside step {state.step + 1}" if started.rollout else f"at step {state.step}"
        state.recovery.save_if_stopped(training.stop, "ppo", save, position)
        raise


def _step(training: _PpoTraining, state: PolicyState, started: StartedStep) -> tuple[PolicyState, dict[str, float]]:
    """Run the rest of a started step and its evaluation; return the state after it, and its figures.

    Its log rows and state follow from the arguments alone, so that it may be interrupted at any forward.
    """
    config = training.config.ppo
    rollout = started.rollout = started.rollout or _collect(training, state)
    figures = {"skipped": 1.0}
    if rollout.problem() is None:
        figures = _learn(training, state, rollout, started.steps)
    state.step += 1
    training.run_dir.metrics.append("ppo", state.step, **figures)
    due = state.step % config.evaluate_every == 0 or state.step == config.steps
    if (due or state.step == 1) and rollout.problem() is None:
        asked = [training.asked[i] for i in _chosen(training, state.step - 1)]
        training.run_dir.rollouts.truncate("ppo", state.step - 1)  # an interrupted attempt may have left some
        for row in rollout_rows(rollout, asked, training.roles.base, config):
            training.run_dir.rollouts.append("ppo", state.step, **row.model_dump())
    _count(training, state, rollout, started.steps)
    if due:
        _evaluate(training, state)
    return state, figures


def _chosen(training: _PpoTraining, done: int) -> list[int]:
    """Return the indices of the prompts of the step after `done` steps."""
    size = training.config.ppo.batch_size
    return training.order[done * size : (done + 1) * size]


def _count(training: _PpoTraining, state: PolicyState, rollout: Rollout, steps: OptimizerSteps) -> None:
    """Count the step as completed or skipped, and report skipped optimizer steps.

    A step is skipped if its rollout is not finite or if all optimizer steps of a role were skipped. Raises as
    `NanRecovery.skip` does.
    """
    problem, what = rollout.problem(), "the step is skipped"
    if problem is None:
        problem, what = steps.problem, f"{steps.skipped} of {steps.done} optimizer steps are skipped"
    if problem is None:
        state.recovery.complete()
    elif steps.done and not steps.role_skipped:
        state.recovery.complete()
        training.report.skipped(state.step, problem, what)
    else:
        state.recovery.skip(training.report, state.step, problem, rollout.batch, what, **rollout.tensors())


def _learn(training: _PpoTraining, state: PolicyState, rollout: Rollout, steps: OptimizerSteps) -> dict[str, float]:
    """Update policy and critic, make the self-checks of the first step, and adapt the KL weight."""
    config, temperature, step = training.config.ppo, training.config.sample.temperature, state.step
    if training.run_dir.number == 1 and is_due(state.claims, "kl_is_zero"):
        apart = (rollout.logprobs - rollout.ref_logprobs).abs().max()  # per token: in a sum differences might cancel
        require(state.claims, "kl_is_zero", SENTENCES["kl_is_zero"], float(apart), MAX_TOKEN_DIFFERENCE)
    training.optimizers.schedule(config, step, state.recovery.rate)
    train_policy, seed = step >= config.critic_warmup_steps, derive_seed(training.seed, "ppo", "update", step)
    figures = update(
        training.roles, training.optimizers, rollout, config, training.scale, temperature, seed, train_policy, steps
    )
    if "policy/first_ratio_error" in figures and is_due(state.claims, "first_ratio_is_one"):
        error = figures["policy/first_ratio_error"]
        require(state.claims, "first_ratio_is_one", SENTENCES["first_ratio_is_one"], error, MOST_RATIO_ERROR)
    if config.kl_controller == "adaptive":
        kl = rollout.figures["objective/kl"]
        state.kl_coef = adapt_kl_coef(state.kl_coef, kl, config.kl_target, config.kl_horizon, len(rollout.batch))
    texts = [training.roles.base.decode(response.tokens) for response in rollout.responses]
    return {**rollout.figures, **figures, "response/distinct_2": distinct_n(texts, 2)}


def _collect(training: _PpoTraining, state: PolicyState) -> Rollout:
    """Collect the rollout of the step after `state.step`.

    Raises `RollBack` if the policy computes NaN or infinities, and after a roll-back `ModelNotFinite`.
    """
    config, roles, chosen = training.config, training.roles, _chosen(training, state.step)
    baseline = None if training.baselines is None else training.baselines[chosen]
    prompts, seed = [training.prompts[i] for i in chosen], derive_seed(training.seed, "ppo", "rollout", state.step)
    score = partial(score_responses, training.evaluation.scorer, roles, [training.asked[i] for i in chosen])
    try:
        return collect(roles, prompts, config.ppo, config.sample, training.scale, state.kl_coef, seed, baseline, score)
    except ModelNotFinite:
        if state.recovery.rate < 1:
            raise
        training.report.rolled_back(state.step + 1, "the policy computes NaN or infinities while it samples")
        raise RollBack from None


def _evaluate(training: _PpoTraining, state: PolicyState) -> None:
    run_dir, config = training.run_dir, training.config
    answers, figures = training.evaluation.evaluate(state.step, config.ppo, training.report.diverged)
    check_start(state.claims, answers.last_difference)
    if state.step == 0 and (problem := training.evaluation.clipping(answers, config.ppo.score_clip)):
        training.report.warned(problem)
    training.evaluation.log(run_dir, state.step, answers, figures)
    objectives = training.evaluation.objectives(answers, config.ppo).tolist()
    choose_policy(training.roles, run_dir, state, objectives, answers.ended, training.evaluation.sft_ended, config)
    keep_step(training.roles, run_dir, state.step, config.ppo.steps, config.ppo.evaluate_every)
