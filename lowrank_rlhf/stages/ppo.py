"""Stage 3: PPO against the reward model with a KL penalty towards SFT."""

import copy
import time
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from lowrank_rlhf.errors import Stopped
from lowrank_rlhf.evaluation.policy_evaluation import PolicyEvaluation, open_gold_judge
from lowrank_rlhf.maths.kl import adapt_kl_coef
from lowrank_rlhf.maths.text import distinct_n
from lowrank_rlhf.models.allocator import release_freed_memory
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.storage import save_role
from lowrank_rlhf.run.records import Sample, Score, read_jsonl
from lowrank_rlhf.session import Session
from lowrank_rlhf.training import policy_checkpoints
from lowrank_rlhf.training.nan_recovery import RollBack, diverged, tell_skipped
from lowrank_rlhf.training.policy_checkpoints import Begun, State
from lowrank_rlhf.training.policy_roles import keep_if_best, load_roles, save_policies
from lowrank_rlhf.training.ppo_update import Optimizers, Turns, update
from lowrank_rlhf.training.prompts import encode_prompts, max_prompt_tokens, shuffled_order
from lowrank_rlhf.training.rollout import RewardScale, Rollout, collect, shape_scores
from lowrank_rlhf.training.self_checks import (
    MAX_TOKEN_DIFFERENCE,
    SENTENCES,
    base_unchanged,
    checksums,
    is_due,
    others_unchanged,
    require,
)

MOST_RATIO_ERROR = 1e-3
"""The same forward on the same micro-batches gives the same bits on a CPU; a GPU's kernels may round otherwise."""


@dataclass(frozen=True)
class _Setting:
    """What stays the same from step to step."""

    session: Session
    prompts: list[list[int]]
    baselines: Tensor | None
    order: list[int]
    """Indices of the prompts of all steps, one step after another."""
    scale: RewardScale
    evaluation: PolicyEvaluation
    optimizers: Optimizers


def run(session: Session) -> dict[str, Any]:
    """Make `adapters/policy` (the best on held-out prompts), `adapters/policy-last` and `adapters/critic`."""
    config, roles, work = session.config.ppo, session.roles, session.work("ppo")
    before = session.base.checksum()
    scale = _load_roles(session)
    others = checksums(roles, [Role.POLICY, Role.CRITIC])
    gold = open_gold_judge(session.config, session.run_dir.path, session.progress, session.stop)
    evaluation = PolicyEvaluation.against_sft(roles, session.prompts[1], session.config, scale, gold)
    optimizers = Optimizers.create(roles, config)
    state, begun = policy_checkpoints.resume(session, optimizers.of_roles)
    prompts, baselines = _prompts(session, scale)
    order = shuffled_order(session.config.seed, len(prompts), config.steps * config.batch_size)
    setting = _Setting(session, prompts, baselines, order, scale, evaluation, optimizers)
    start, first = time.monotonic(), state.step
    with session.progress.track("ppo", config.steps, "steps", state.step) as bar:
        if state.sft_eos_rate is None:
            _evaluate(session, evaluation, state)
            policy_checkpoints.save(session, optimizers.of_roles, state)
        while state.step < config.steps:
            try:
                state, figures = _save_if_stopped(setting, state, begun)
                begun = Begun()
            except RollBack:
                state, begun = policy_checkpoints.roll_back(session, optimizers.of_roles, state)
                bar.advance(state.step - bar.count)
                continue
            shown = {"score": "objective/scores", "kl": "objective/kl", "tokens_per_second": "tokens_per_second"}
            bar.advance(1, **{name: figures[key] for name, key in shown.items() if key in figures})
            due = state.step % config.save_every == 0 or state.step == config.steps
            if due and not state.breakdowns.in_a_row:  # else there would be no good one left
                policy_checkpoints.save(session, optimizers.of_roles, state)
    seconds = (time.monotonic() - start) / max(1, config.steps - first)
    save_role(roles, Role.CRITIC, work / "adapters" / "critic")
    save_policies(roles, work)
    return {
        "steps": config.steps,
        "best_step": state.best_step,
        "seconds_per_step": seconds,
        "gold": gold and gold.judge.name,
        "claims": [
            claim.model_dump()
            for claim in (
                *state.claims,
                base_unchanged(session.base, "PPO", before),
                others_unchanged(roles, "PPO", others),
            )
        ],
    }


def _load_roles(session: Session) -> RewardScale:
    """The four roles from the finished stages."""
    scale = load_roles(session.roles, session.run_dir.artifact("adapters"), session.config)
    session.roles.copy(Role.REWARD, Role.CRITIC)
    if session.config.ppo.critic_head == "zero":
        session.roles.new_head(Role.CRITIC, None)
    return scale


def _prompts(session: Session, scale: RewardScale) -> tuple[list[list[int]], Tensor | None]:
    """Tokens of the prompts to learn from, and with `contrastive` the mean shaped score of SFT's answers to each."""
    prompts, limit = session.prompts[0], max_prompt_tokens(session.config)
    if not session.config.ppo.contrastive:
        return encode_prompts(session.base, prompts, limit), None
    artifact = session.run_dir.artifact
    finished = {sample.id: sample.finished for sample in read_jsonl(artifact("answers.jsonl"), Sample)}
    rows = list(read_jsonl(artifact("scores.jsonl"), Score))
    scores = (torch.tensor([row.score for row in rows]) - scale.mean) / scale.std
    shaped = shape_scores(scores, torch.tensor([finished[row.sample_id] for row in rows]), session.config.ppo)
    of_prompt = defaultdict(list)
    for row, score in zip(rows, shaped.tolist(), strict=True):
        of_prompt[row.prompt_id].append(score)
    ranked = [prompt for prompt in prompts if prompt.id in of_prompt]
    baselines = torch.tensor([fmean(of_prompt[prompt.id]) for prompt in ranked])
    return encode_prompts(session.base, ranked, limit), baselines


def _save_if_stopped(setting: _Setting, state: State, begun: Begun) -> tuple[State, dict[str, float]]:
    """The next step; a stop inside of it is obeyed at once, and what it has done is kept (`Breakdowns.stopped`)."""
    session, tokens = setting.session, setting.session.base.limits.tokens

    def attempt() -> tuple[State, dict[str, float]]:
        if session.base.limits.tokens != tokens:
            begun.cut_again(session.config.ppo, session.base.limits)
        return _step(setting, copy.deepcopy(state), begun)

    try:
        return session.base.limits.retry(attempt, max(map(len, setting.prompts)) + session.config.sample.max_new_tokens)
    except Stopped:
        save = partial(policy_checkpoints.save, session, setting.optimizers.of_roles, state, begun)
        where = f"inside step {state.step + 1}" if begun.rollout else f"at step {state.step}"
        state.breakdowns.stopped(session, "ppo", save, where)
        raise


def _step(setting: _Setting, state: State, begun: Begun) -> tuple[State, dict[str, float]]:
    """The step after `state.step`, from where `begun` says, with its evaluation: the state after it, and figures.

    What it writes into logs and state follows from the arguments alone, so that it may break off at any forward.
    """
    session, config = setting.session, setting.session.config.ppo
    rollout = begun.rollout = begun.rollout or _collect(setting, state)
    release_freed_memory()  # here and below: sampling's tensors and training's don't fit each other's gaps
    figures = {"skipped": 1.0}
    if rollout.problem() is None:
        figures = _learn(setting, state, rollout, begun.turns)
    release_freed_memory()
    state.step += 1
    session.metrics.append("ppo", state.step, **figures)
    _count(session, state, rollout, begun.turns)
    if state.step % config.evaluate_every == 0 or state.step == config.steps:
        _evaluate(session, setting.evaluation, state)
    return state, figures


def _count(session: Session, state: State, rollout: Rollout, turns: Turns) -> None:
    """Count the step `state.step` as made or as skipped, and tell how many of its turns were left out.

    It is skipped where its rollout is not finite or a role made none of its turns; that raises what
    `Breakdowns.skipped` does.
    """
    problem, what = rollout.problem(), "the step is skipped"
    if problem is None:
        problem, what = turns.problem, f"{turns.skipped} of {turns.done} turns are skipped"
    if problem is None:
        state.breakdowns.made()
    elif turns.done and not turns.lost:
        state.breakdowns.made()
        tell_skipped(session, "ppo", state.step, problem, what)
    else:
        state.breakdowns.skipped(session, "ppo", state.step, problem, rollout.batch, what, **rollout.tensors())


def _learn(setting: _Setting, state: State, rollout: Rollout, turns: Turns) -> dict[str, float]:
    """The update of the step after `state.step`, the claims about it, and the KL weight of the next one."""
    session, step = setting.session, state.step
    config, temperature = session.config.ppo, session.config.sample.temperature
    if is_due(state.claims, "kl_is_zero"):
        apart = (rollout.logprobs - rollout.ref_logprobs).abs().max()  # per token: in a sum differences might cancel
        require(state.claims, "kl_is_zero", SENTENCES["kl_is_zero"], float(apart), MAX_TOKEN_DIFFERENCE)
    setting.optimizers.schedule(config, step, state.breakdowns.rate)
    train_policy, seed = step >= config.critic_warmup_steps, session.seed("ppo", "update", step)
    figures = update(session.roles, setting.optimizers, rollout, config, temperature, seed, train_policy, turns)
    if "policy/first_ratio_error" in figures and is_due(state.claims, "first_ratio_is_one"):
        error = figures["policy/first_ratio_error"]
        require(state.claims, "first_ratio_is_one", SENTENCES["first_ratio_is_one"], error, MOST_RATIO_ERROR)
    if config.kl_controller == "adaptive":
        kl = rollout.figures["objective/kl"]
        state.kl_coef = adapt_kl_coef(state.kl_coef, kl, config.kl_target, config.kl_horizon, len(rollout.batch))
    return {**rollout.figures, **figures, "response/distinct_2": distinct_n(_texts(session, rollout), 2)}


def _collect(setting: _Setting, state: State) -> Rollout:
    """The rollout of the step after `state.step`."""
    session, config = setting.session, setting.session.config
    size = config.ppo.batch_size
    chosen = setting.order[state.step * size : (state.step + 1) * size]
    baseline = None if setting.baselines is None else setting.baselines[chosen]
    prompts, seed = [setting.prompts[i] for i in chosen], session.seed("ppo", "rollout", state.step)
    return collect(session.roles, prompts, config.ppo, config.sample, setting.scale, state.kl_coef, seed, baseline)


def _texts(session: Session, rollout: Rollout) -> list[str]:
    return [session.base.decode(response.tokens) for response in rollout.responses]


def _evaluate(session: Session, evaluation: PolicyEvaluation, state: State) -> None:
    answers, figures = evaluation.evaluate(state.step, session.config.ppo, partial(diverged, session, "ppo"))
    evaluation.log(session.run_dir, state.step, answers, figures)
    keep_if_best(session.roles, session.work("ppo"), state, figures, session.config)
