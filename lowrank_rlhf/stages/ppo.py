"""Stage 3: PPO against the reward model with a KL penalty towards SFT."""

import shutil
import time
from collections import defaultdict
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from lowrank_rlhf import faults
from lowrank_rlhf.artifacts import latest_checkpoint, read_json, save_checkpoint, write_json_atomic
from lowrank_rlhf.errors import StageFailed
from lowrank_rlhf.maths.kl import adapt_kl_coef
from lowrank_rlhf.maths.text import distinct_n
from lowrank_rlhf.models.allocator import release_freed_memory
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.stepping import check_finite
from lowrank_rlhf.models.storage import load_optimizer, load_role, save_optimizer, save_role
from lowrank_rlhf.ppo.rollout import RewardScale, Rollout, collect, shape_scores
from lowrank_rlhf.ppo.update import Optimizers, update
from lowrank_rlhf.records import Sample, Score, read_jsonl
from lowrank_rlhf.stages.answers import encode_prompts
from lowrank_rlhf.stages.breakdown import explained
from lowrank_rlhf.stages.claims import base_unchanged, checksums, claim, others_unchanged
from lowrank_rlhf.stages.compare import Contest, gold_judge
from lowrank_rlhf.stages.context import Context
from lowrank_rlhf.stages.reward_data import about_reward

MOST_RATIO_ERROR = 1e-3
"""The same forward on the same micro-batches gives the same bits on a CPU; a GPU's kernels may round otherwise."""

MOST_TOKEN_DIFFERENCE = 1e-4
"""Nats by which policy and reference may differ at any token while they are the same: for other kernels' rounding."""

WATCHED_PROMPTS = 8
"""Held-out prompts whose answers are kept at each evaluation, for people to read how they change."""


@dataclass
class State:
    """What PPO carries from step to step besides weights and optimisers; saved with every checkpoint."""

    step: int = 0
    kl_coef: float = 0.0
    sft_eos_rate: float = 0.0
    best_step: int = 0
    best_objective: float | None = None
    best_ends: bool = False
    claims: list[dict[str, Any]] = field(default_factory=list)


def run(context: Context) -> dict[str, Any]:
    """Make `adapters/policy` (the best on held-out prompts), `adapters/policy-last` and `adapters/critic`."""
    config, roles, work = context.config.ppo, context.roles, context.work("ppo")
    before = context.base.checksum()
    scale = _load_roles(context)
    others = checksums(context, [Role.POLICY, Role.CRITIC])
    figure, judge = gold_judge(context)
    contest = Contest.against_sft(context, config.evaluate_prompts, scale, judge, figure=figure)
    optimizers, state = _resume(context, work)
    prompts, baselines = _prompts(context, scale)
    order = _prompt_order(context, len(prompts))
    start, first = time.monotonic(), state.step
    with context.progress.track("ppo", config.steps, "steps", state.step) as bar:
        if state.step == 0:
            _evaluate(context, contest, state, work)
        for step in range(state.step, config.steps):
            chosen = order[step * config.batch_size : (step + 1) * config.batch_size]
            baseline = None if baselines is None else baselines[chosen]
            with explained("ppo", step + 1, "ppo.learning_rate and ppo.critic_learning_rate"):
                figures = _step(context, [prompts[i] for i in chosen], baseline, optimizers, state, scale)
            context.metrics.append("ppo", step + 1, **figures)
            state.step = step + 1
            if state.step % config.evaluate_every == 0 or state.step == config.steps:
                _evaluate(context, contest, state, work)
            shown = {"score": "objective/scores", "kl": "objective/kl", "tokens_per_second": "tokens_per_second"}
            bar.advance(1, **{name: figures[key] for name, key in shown.items()})
            stopping = context.stop.requested
            if stopping or state.step % config.save_every == 0:
                save_checkpoint(work, state.step, lambda folder: _save(context, folder, optimizers, state))
            if stopping:
                context.stop.check(f"ppo is saved at step {state.step}")
    seconds = (time.monotonic() - start) / max(1, config.steps - first)
    save_role(roles, Role.POLICY, work / "adapters" / "policy-last")
    save_role(roles, Role.CRITIC, work / "adapters" / "critic")
    # A copy: killed from here on, the stage comes through this line again.
    shutil.copytree(work / "best", work / "adapters" / "policy", dirs_exist_ok=True)
    faults.point("policy: the best one copied")
    return {
        "steps": config.steps,
        "best_step": state.best_step,
        "seconds_per_step": seconds,
        "gold": contest.judge and contest.judge.name,
        "claims": [
            *state.claims,
            base_unchanged(context, "PPO", before),
            others_unchanged(context, "PPO", others),
        ],
    }


def _load_roles(context: Context) -> RewardScale:
    """The four roles from the finished stages; refuses a reward model that is not worth optimising against."""
    roles, artifact = context.roles, context.run_dir.artifact
    about = about_reward(artifact("adapters/reward"))
    if about["weak"] and not context.config.ppo.accept_weak_reward:
        raise StageFailed(
            f"ppo: {about['weak']}. PPO would only learn to please its mistakes: rank more answers, "
            "or set ppo.accept_weak_reward: true"
        )
    load_role(roles, Role.POLICY, artifact("adapters/sft"))
    roles.copy(Role.POLICY, Role.REFERENCE)
    load_role(roles, Role.REWARD, artifact("adapters/reward"))
    roles.copy(Role.REWARD, Role.CRITIC)
    if context.config.ppo.critic_head == "zero":
        roles.new_head(Role.CRITIC, None)
    if not context.config.ppo.normalize_score:
        return RewardScale(about["pooling"], 0.0, 1.0)
    return RewardScale(about["pooling"], about["score_mean"], about["score_std"])


def _prompts(context: Context, scale: RewardScale) -> tuple[list[list[int]], Tensor | None]:
    """Tokens of the prompts to learn from, and with `contrastive` the mean shaped score of SFT's answers to each."""
    prompts = context.prompts[0]
    if not context.config.ppo.contrastive:
        return encode_prompts(context, prompts), None
    artifact = context.run_dir.artifact
    finished = {sample.id: sample.finished for sample in read_jsonl(artifact("answers.jsonl"), Sample)}
    rows = list(read_jsonl(artifact("scores.jsonl"), Score))
    scores = (torch.tensor([row.score for row in rows]) - scale.mean) / scale.std
    shaped = shape_scores(scores, torch.tensor([finished[row.sample_id] for row in rows]), context.config.ppo)
    of_prompt = defaultdict(list)
    for row, score in zip(rows, shaped.tolist(), strict=True):
        of_prompt[row.prompt_id].append(score)
    ranked = [prompt for prompt in prompts if prompt.id in of_prompt]
    return encode_prompts(context, ranked), torch.tensor([fmean(of_prompt[prompt.id]) for prompt in ranked])


def _prompt_order(context: Context, count: int) -> list[int]:
    """Indices of the prompts of all steps: one seeded permutation after another."""
    needed = context.config.ppo.steps * context.config.ppo.batch_size
    order: list[int] = []
    while len(order) < needed:
        generator = torch.Generator().manual_seed(context.seed("ppo", "prompts", len(order)))
        order += torch.randperm(count, generator=generator).tolist()
    return order


def _step(
    context: Context,
    prompts: list[list[int]],
    baseline: Tensor | None,
    optimizers: Optimizers,
    state: State,
    scale: RewardScale,
) -> dict[str, float]:
    config, sampling, step = context.config.ppo, context.config.sample, state.step
    start = time.monotonic()
    seed = context.seed("ppo", "rollout", step)
    rollout = collect(context.roles, prompts, config, sampling, scale, state.kl_coef, seed, baseline)
    release_freed_memory()  # here and below: sampling's tensors and training's don't fit each other's gaps
    collected = time.monotonic()
    if step == 0:
        apart = (rollout.logprobs - rollout.ref_logprobs).abs().max()  # token by token: in a sum they might cancel
        _claim(state, "KL(policy || SFT) is 0 at step 0", float(apart), MOST_TOKEN_DIFFERENCE)
    optimizers.schedule(config, step)
    train_policy = step >= config.critic_warmup_steps
    seed = context.seed("ppo", "update", step)
    figures = update(context.roles, optimizers, rollout, config, sampling.temperature, seed, train_policy)
    release_freed_memory()
    if step == config.critic_warmup_steps:
        found = figures["policy/first_ratio_error"]
        _claim(state, "the first minibatch's probability ratio is 1", found, MOST_RATIO_ERROR)
    if config.kl_controller == "adaptive":
        kl = rollout.figures["objective/kl"]
        state.kl_coef = adapt_kl_coef(state.kl_coef, kl, config.kl_target, config.kl_horizon, len(rollout.batch))
    times = {"time/rollout": collected - start, "time/update": time.monotonic() - collected}
    return {**rollout.figures, **figures, **times, "response/distinct_2": distinct_n(_texts(context, rollout), 2)}


def _texts(context: Context, rollout: Rollout) -> list[str]:
    return [context.base.decode(response.tokens) for response in rollout.responses]


def _claim(state: State, text: str, error: float, tolerance: float) -> None:
    """Note what was found, and stop where it is wrong: everything after would be."""
    state.claims.append(claim(text, error, error <= tolerance))
    if not error <= tolerance:  # NaN is wrong too
        raise StageFailed(
            f"ppo: {text}: it is off by {error:.3g}. Sampling, reference and training don't see the same model; "
            "this is a bug here or in a library, please report it with the run's env.json"
        )


def _evaluate(context: Context, contest: Contest, state: State, work: Path) -> None:
    """Figures on held-out prompts; the policy is kept if its objective there is the best so far.

    Before that, one whose answers end by themselves as often as SFT's goes before one whose don't: a few answers that
    run on without end hardly show in a mean. The objective is PPO's own, the reward model's score less the KL penalty:
    choosing by the judge would spend the held-out judgement that the report is about.
    """
    answers = contest.meet(context)
    release_freed_memory()
    figures = contest.figures(answers, context.config.ppo)
    with explained("ppo", state.step, "ppo.learning_rate"):
        check_finite("the objective on held-out prompts", figures["objective"])
    context.metrics.append("ppo", state.step, **{f"eval/{name}": value for name, value in figures.items()})
    for row in contest.rows(answers, WATCHED_PROMPTS):
        context.run_dir.watched.append("ppo", state.step, **row)
    if state.step == 0:
        state.sft_eos_rate = figures["eos_rate"]
        return  # the figures of SFT itself: not a policy that PPO made
    ends, objective = figures["eos_rate"] >= state.sft_eos_rate, figures["objective"]
    if state.best_objective is None or (ends, objective) > (state.best_ends, state.best_objective):
        state.best_step, state.best_objective, state.best_ends = state.step, objective, ends
        save_role(context.roles, Role.POLICY, work / "best")


def _save(context: Context, folder: Path, optimizers: Optimizers, state: State) -> None:
    save_role(context.roles, Role.POLICY, folder / "policy")
    save_role(context.roles, Role.CRITIC, folder / "critic")
    save_optimizer(optimizers.policy, folder / "policy-optimizer.safetensors")
    save_optimizer(optimizers.critic, folder / "critic-optimizer.safetensors")
    if state.best_step:
        shutil.copytree(context.work("ppo") / "best", folder / "best")
    write_json_atomic(folder / "state.json", {"schema": 1, **vars(state)})


def _read_state(path: Path) -> State:
    """What `_save` wrote. Raises `StageFailed` with what is missing: another version of this package wrote it."""
    saved = read_json(path) or {}
    names = [entry.name for entry in fields(State)]
    missing = [name for name in names if name not in saved]
    if saved.get("best_step") and not (path.parent / "best").is_dir():
        missing.append("best policy beside it")
    if missing:
        raise StageFailed(
            f"ppo: {path} has no {', '.join(missing)}: another version of this package wrote it, and PPO cannot go on "
            "from there. Go on with that version, or make the stage again: --redo ppo"
        )
    return State(**{name: saved[name] for name in names})


def _resume(context: Context, work: Path) -> tuple[Optimizers, State]:
    """From the last checkpoint, or from the beginning."""
    optimizers = Optimizers.create(context.roles, context.config.ppo)
    state = State(kl_coef=context.config.ppo.kl_coef)
    if found := latest_checkpoint(work):
        folder = found[1]
        load_role(context.roles, Role.POLICY, folder / "policy")
        load_role(context.roles, Role.CRITIC, folder / "critic")
        load_optimizer(optimizers.policy, folder / "policy-optimizer.safetensors")
        load_optimizer(optimizers.critic, folder / "critic-optimizer.safetensors")
        state = _read_state(folder / "state.json")
        if state.best_step:  # as it was then: what stands in the work folder may be later, or cut short
            shutil.copytree(folder / "best", work / "best", dirs_exist_ok=True)
    for log in (context.run_dir.metrics, context.run_dir.watched):
        log.truncate("ppo", state.step if state.step else -1)
    return optimizers, state
