"""Training of the reward adapter with its head on the comparisons."""

import time
from collections.abc import Sequence

import torch

from lowrank_rlhf.config.schema import RewardConfig
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.models.precision import sum_dtype
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.training.nan_recovery import RollBack, SkipReport
from lowrank_rlhf.training.optimizer_step import NotFinite, all_reduce_gradients, clip_gradients, finite_step
from lowrank_rlhf.training.reward_data import Group, group_batches, members_loss, rows_of, split_scores
from lowrank_rlhf.training.role_checkpoints import RoleCheckpoints
from lowrank_rlhf.training.rollout import RewardScale


def train_adapter(
    config: RewardConfig,
    seed: int,
    roles: Roles,
    groups: Sequence[Group],
    scale: RewardScale,
    run_dir: RunDir,
    progress: Progress,
    stop: StopRequest,
) -> None:
    """Train epochs over the prompts, each in its own order from the run's `seed`, from the last checkpoint if any."""
    order: list[int] = []
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(derive_seed(seed, "reward", "order", epoch))
        order += torch.randperm(len(groups), generator=generator).tolist()
    batches = [order[start : start + config.batch_size] for start in range(0, len(order), config.batch_size)]
    optimizer = torch.optim.AdamW(roles.parameters(Role.REWARD), lr=config.learning_rate, weight_decay=0.0)
    checkpoints = RoleCheckpoints(run_dir.work("reward"), "reward", roles, Role.REWARD, optimizer, run_dir.metrics)
    report = SkipReport("reward", "reward.learning_rate", run_dir, progress, roles.base)
    done = checkpoints.resume()
    with progress.track("reward", len(batches), "steps", done) as bar, checkpoints.saved_if_stopped(bar, stop):
        while bar.count < len(batches):
            try:
                batch = [groups[i] for i in batches[bar.count]]
                figures = _advance(checkpoints, report, config, scale, bar.count, batch, len(batches))
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
    scale: RewardScale,
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
        loss, accuracy = roles.base.limits.retry(lambda: _step(roles, optimizer, groups, config, scale), widest)
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
    roles: Roles, optimizer: torch.optim.Optimizer, groups: Sequence[Group], config: RewardConfig, scale: RewardScale
) -> tuple[float, float]:
    """Take one optimizer step; return the mean loss and the pair accuracy before it."""
    base = roles.base
    optimizer.zero_grad()
    total, right = torch.zeros(2, dtype=sum_dtype(base.device), device=base.device)
    with roles.acting_as(Role.REWARD, train=True):
        for part in roles.group.shard(group_batches(groups, base.limits.tokens, roles.group.world_size)):
            rows = rows_of(part, base)  # (N, T), N = all answers of the part's groups
            scores = split_scores(
                scale.raw(roles.scores(rows), rows.response), part
            )  # (N, T, ...) -> (K, ...) per prompt
            # All pairs of a prompt are one element, so that a prompt with many answers does not dominate the batch
            # (Ouyang et al. 2022, section 3.5): K forwards, not K(K-1).
            losses = [members_loss(s, group, config.loss, config.margin) for s, group in zip(scores, part, strict=True)]
            loss = torch.stack(losses).sum() / len(groups)  # scalar; parts of all processes add up to the mean
            roles.backward(loss)
            total += loss.detach()
            for found, group in zip(scores, part, strict=True):
                better, worse, _ = map(list, zip(*group.pairs, strict=True))
                own = found if found.dim() == 1 else found.mean(-1)  # (K,), the mean of several members
                right += (own[better] > own[worse]).sum()
    all_reduce_gradients(roles.group, optimizer, total, right)
    norm = clip_gradients(optimizer, config.max_grad_norm)
    mean, rightly, grad_norm = torch.stack([total, right, norm.to(total)]).tolist()  # one wait for the device
    finite_step(optimizer, "reward model", mean, grad_norm)
    return mean, rightly / sum(len(group.pairs) for group in groups)
