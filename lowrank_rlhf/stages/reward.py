"""Stage 2c: train the reward adapter and its head on the comparisons, starting from SFT."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrank_rlhf.config.schema import RewardConfig
from lowrank_rlhf.evaluation.match import score_answers
from lowrank_rlhf.evaluation.reward_metrics import (
    accuracy_in_words,
    held_out_accuracy,
    verdict_in_words,
    weakness,
    weakness_in_words,
)
from lowrank_rlhf.evaluation.sampling import answer_prompts
from lowrank_rlhf.maths.logistic import fit_pair_head
from lowrank_rlhf.maths.masking import pool
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.scoring import score_features, score_tokens
from lowrank_rlhf.models.storage import save_role
from lowrank_rlhf.run.checkpoints import latest_checkpoint
from lowrank_rlhf.run.directory import write_json_atomic
from lowrank_rlhf.run.records import Score, write_jsonl
from lowrank_rlhf.run.results import Claim
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.nan_recovery import RollBack, SkipReport
from lowrank_rlhf.training.optimizer_step import NotFinite, all_reduce_gradients, clipped_step
from lowrank_rlhf.training.prompts import first_fitting, max_prompt_tokens
from lowrank_rlhf.training.reward_data import Group, group_loss, read_groups, rows_of, split_groups, split_scores
from lowrank_rlhf.training.role_checkpoints import RoleCheckpoints
from lowrank_rlhf.training.rollout import RewardScale
from lowrank_rlhf.training.self_checks import base_unchanged, checksums, others_unchanged

MOST_SCALED = 64
"""Prompts that SFT answers to find the scores' scale, where the ranked answers are not SFT's."""


def run(session: Session) -> dict[str, Any]:
    """Make `adapters/reward`: a PEFT folder with the head, and `reward.json` with pooling and score statistics.

    `scores.jsonl` holds its score of every ranked answer.
    """
    config, roles = session.config.reward, session.roles
    before = session.base.checksum()
    groups, note = read_groups(session.base, session.run_dir.path, session.config.model.max_length)
    if note:
        session.progress.say(f"  {note}")
    train, held_out = split_groups(groups, config.held_out, session.seed("reward", "split"))
    load_role(roles, Role.POLICY, session.run_dir.artifact("adapters/sft"))
    roles.copy(Role.POLICY, Role.REWARD)
    roles.new_head(Role.REWARD, torch.Generator().manual_seed(session.seed("reward", "head")))
    others = checksums(roles, [Role.REWARD])
    features = _features(session, [*train, *held_out]) if config.fit_head_first else None
    if features is not None:
        _fit_head(session, train, features[: len(train)])
    if config.epochs:
        _train(session, train)

    if features is not None and not config.epochs:  # the adapter is as it was when they were read
        every = [of_group @ roles.heads[Role.REWARD].weight[0].cpu() for of_group in features]
    else:
        every = _score(session, [*train, *held_out])
    scores = every[len(train) :]
    figures = held_out_accuracy(held_out, scores, session.config.evaluate.bootstrap_samples, session.seed("bootstrap"))
    found = weakness(figures)
    weak, message = found and weakness_in_words(found, figures), accuracy_in_words(figures)
    session.progress.say(f"  {message}")
    session.run_dir.event(  # kept when the stage is made again, so that accuracy can be seen to grow with the rankings
        "measured",
        stage="reward",
        prompts=len(train),
        accuracy=figures.accuracy,
        interval=figures.accuracy_interval,
    )
    statistics = _score_statistics(session, torch.cat(scores))
    folder = session.work("reward") / "adapters" / "reward"
    save_role(roles, Role.REWARD, folder)
    _write_scores(session, [*train, *held_out], every, len(train))
    write_json_atomic(
        folder / "reward.json",
        {"schema": 1, "pooling": config.pooling, "layers": roles.head_layers, **statistics, "weak": weak},
    )
    return {
        "prompts_train": len(train),
        "pairs_train": sum(len(group.pairs) for group in train),
        **asdict(figures),
        **statistics,
        "weakness": found,
        "weak": weak,
        "verdict": verdict_in_words(figures),
        "message": message,
        "claims": [
            claim.model_dump()
            for claim in (
                _reload_claim(session, folder, held_out[:4]),
                base_unchanged(session.base, "the reward stage", before),
                others_unchanged(roles, "the reward stage", others),
            )
        ],
    }


def _score(session: Session, groups: Sequence[Group]) -> list[Tensor]:
    """Return the reward model's scores of each group's answers, (K,) each, on the CPU."""
    base = session.base
    rows = rows_of(groups, base)
    pooled = pool(score_tokens(session.roles, Role.REWARD, rows), rows.response, session.config.reward.pooling)
    return split_scores(pooled.cpu(), groups)


def _write_scores(session: Session, groups: Sequence[Group], scores: Sequence[Tensor], trained: int) -> None:
    """`scores.jsonl`; the model was trained on the first so many groups."""
    write_jsonl(
        session.work("reward") / "scores.jsonl",
        (
            Score(sample_id=sample, prompt_id=group.prompt_id, score=score, held_out=index >= trained)
            for index, (group, of_group) in enumerate(zip(groups, scores, strict=True))
            for sample, score in zip(group.samples, of_group.tolist(), strict=True)
        ),
    )


def _score_statistics(session: Session, compared: Tensor) -> dict[str, Any]:
    """Mean and deviation of the scores of SFT's answers, and `scores_of`: whose answers these really were.

    `compared` are the scores of the held-out ranked answers. A data set's answers are not SFT's, and their scale would
    shift and clip PPO's scores wrongly: SFT answers some training prompts then, where two or more leave it the room.
    """
    scores, whose = compared, "SFT answers"
    if session.config.rank.source == "dataset":
        prompts = first_fitting(session.base, session.prompts[0], max_prompt_tokens(session.config), MOST_SCALED)
        whose = "SFT answers" if len(prompts) > 1 else "the compared answers"
        if len(prompts) > 1:
            session.progress.say(f"  the scale of the scores: SFT answers {len(prompts)} prompts")
            answers = answer_prompts(
                session.roles, Role.POLICY, prompts, session.config.sample, session.seed("reward", "scale")
            )
            raw = RewardScale(session.config.reward.pooling, 0.0, 1.0)
            scores = torch.tensor(
                score_answers(
                    session.roles,
                    prompts,
                    [samples[0] for samples in answers],
                    session.config.sample.max_new_tokens,
                    raw,
                )
            )
    return {"score_mean": float(scores.mean()), "score_std": max(float(scores.std()), 1e-6), "scores_of": whose}


def _features(session: Session, groups: Sequence[Group]) -> list[Tensor] | None:
    """What the head would read of each group's answers, (K, h) each; None where the head has been fitted before."""
    if latest_checkpoint(session.work("reward")):
        return None
    rows = rows_of(groups, session.base)

    def read() -> Tensor:
        with session.progress.track("reward", len(rows), "answers read") as bar:
            return score_features(session.roles, Role.REWARD, rows, session.config.reward.pooling, bar.advance)

    return split_scores(session.base.limits.retry(read, max(rows.lengths())).cpu(), groups)


def _fit_head(session: Session, groups: Sequence[Group], features: Sequence[Tensor]) -> None:
    """Set the head to the best one for the current adapter."""
    chosen, rejected, weights = [], [], []
    for group, of_group in zip(groups, features, strict=True):
        for better, worse, _ in group.pairs:
            chosen.append(of_group[better])
            rejected.append(of_group[worse])
            weights.append(1 / len(group.pairs))
    head = fit_pair_head(
        torch.stack(chosen), torch.stack(rejected), torch.tensor(weights), session.config.reward.head_l2
    )
    with torch.no_grad():
        session.roles.heads[Role.REWARD].weight.copy_(head[None])


def _train(session: Session, groups: Sequence[Group]) -> None:
    """Train epochs over the prompts in seeded order, from the last checkpoint if there is one."""
    config, roles = session.config.reward, session.roles
    order: list[int] = []
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(session.seed("reward", "order", epoch))
        order += torch.randperm(len(groups), generator=generator).tolist()
    batches = [order[start : start + config.batch_size] for start in range(0, len(order), config.batch_size)]
    optimizer = torch.optim.AdamW(roles.parameters(Role.REWARD), lr=config.learning_rate, weight_decay=0.0)
    checkpoints = RoleCheckpoints(session.work("reward"), "reward", roles, Role.REWARD, optimizer, session.metrics)
    report = SkipReport("reward", "reward.learning_rate", session.run_dir, session.progress, session.base)
    done = checkpoints.resume()
    with (
        session.progress.track("reward", len(batches), "steps", done) as bar,
        checkpoints.saved_if_stopped(bar, session.stop),
    ):
        while bar.count < len(batches):
            try:
                batch = [groups[i] for i in batches[bar.count]]
                figures = _advance(checkpoints, report, config, bar.count, batch, len(batches))
            except RollBack:
                bar.advance(checkpoints.roll_back() - bar.count)
                continue
            bar.advance(1, **{name: figures[name] for name in ("loss", "tokens_per_second") if name in figures})
            due = bar.count % config.save_every == 0 or bar.count == len(batches)
            if due and not checkpoints.recovery.in_a_row:  # a roll-back needs one from before the skipped steps
                checkpoints.save(bar.count)


def _advance(
    checkpoints: RoleCheckpoints,
    report: SkipReport,
    config: RewardConfig,
    done: int,
    groups: Sequence[Group],
    steps: int,
) -> dict[str, float]:
    """Take the step after `done` completed ones, or count it as skipped; return its figures."""
    roles, optimizer, recovery = checkpoints.roles, checkpoints.optimizer, checkpoints.recovery
    optimizer.param_groups[0]["lr"] = recovery.rate * config.learning_rate * (1 - done / steps)
    since, problem, figures = time.monotonic(), None, {"skipped": 1.0}
    try:
        widest = max(group.width * len(group.answers) for group in groups)  # a group is never cut
        loss, accuracy = roles.base.limits.retry(lambda: _step(roles, optimizer, groups, config), widest)
        pace = sum(group.tokens for group in groups) / (time.monotonic() - since)
        figures = {"loss": loss, "accuracy": accuracy, "tokens_per_second": pace, "skipped": 0.0}
    except NotFinite as error:
        problem = str(error)
    checkpoints.metrics.append("reward", done + 1, **figures)
    if problem is None:
        recovery.complete()
    else:
        recovery.skip(report, done + 1, problem, rows_of(groups, roles.base))
    return figures


def _step(
    roles: Roles, optimizer: torch.optim.Optimizer, groups: Sequence[Group], config: RewardConfig
) -> tuple[float, float]:
    """Take one optimizer step; return the mean loss and the pair accuracy before it."""
    base = roles.base
    optimizer.zero_grad()
    total, right = torch.zeros(2, dtype=torch.float64, device=base.device)
    with roles.acting_as(Role.REWARD, train=True):
        for part in roles.group.shard(_micro_batches(groups, base.limits.tokens, roles.group.world_size)):
            rows = rows_of(part, base)  # (N, T), N = all answers of the part's groups
            pooled = pool(roles.scores(rows), rows.response, config.pooling)  # (N, T) -> (N,)
            scores = split_scores(pooled, part)  # one (K,) per prompt
            # All pairs of a prompt are one element, so that a prompt with many answers does not dominate the batch
            # (Ouyang et al. 2022, section 3.5): K forwards, not K(K-1).
            losses = [group_loss(s, group, config.loss, config.margin) for s, group in zip(scores, part, strict=True)]
            loss = torch.stack(losses).sum() / len(groups)  # scalar; parts of all processes add up to the mean
            roles.backward(loss)
            total += loss.detach()
            for found, group in zip(scores, part, strict=True):
                right += sum(bool(found[better] > found[worse]) for better, worse, _ in group.pairs)
    all_reduce_gradients(roles.group, optimizer, total, right)
    clipped_step(optimizer, "reward model", float(total), config.max_grad_norm)
    return float(total), float(right) / sum(len(group.pairs) for group in groups)


def _micro_batches(groups: Sequence[Group], max_tokens: int, at_least: int = 1) -> list[list[Group]]:
    """Put whole groups together while their padded rows fit; a group is never cut, as its loss needs all its scores.

    Returns at least `at_least` parts if there are as many groups.
    """
    parts: list[list[Group]] = []
    most = max(1, len(groups) // at_least)
    for group in sorted(groups, key=lambda group: -group.width):
        fits = (
            parts
            and len(parts[-1]) < most
            and parts[-1][0].width * (sum(len(g.answers) for g in parts[-1]) + len(group.answers)) <= max_tokens
        )
        if fits:
            parts[-1].append(group)
        else:
            parts.append([group])
    return parts


def _reload_claim(session: Session, folder: Path, groups: Sequence[Group]) -> Claim:
    before = torch.cat(_score(session, groups))
    load_role(session.roles, Role.REWARD, folder)
    difference = float((torch.cat(_score(session, groups)) - before).abs().max())
    text = "the saved reward model scores as before after a reload"
    return Claim(id="reward_reloads", claim=text, figure=difference, holds=difference == 0)
