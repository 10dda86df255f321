"""Stage 2c: train the reward adapter and its head on the comparisons, starting from SFT."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from lowrank_rlhf.config.schema import Config, RewardConfig
from lowrank_rlhf.evaluation.match import score_answers
from lowrank_rlhf.evaluation.prompt_audit import audit_in_words, audit_prompts
from lowrank_rlhf.evaluation.reward_metrics import (
    HeldOutAccuracy,
    accuracy_in_words,
    held_out_accuracy,
    prompts_of,
    raw_scores,
    verdict_in_words,
    weakness,
    weakness_in_words,
    write_scores,
)
from lowrank_rlhf.evaluation.round_accuracy import accuracy_by_round, ranked_earlier, scores_of_last_round
from lowrank_rlhf.evaluation.sampling import answer_prompts
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.scoring import require_finite
from lowrank_rlhf.models.shared_prompts import answer_features
from lowrank_rlhf.models.storage import save_role
from lowrank_rlhf.preferences.reward_tests import RewardTest, record_reward_test
from lowrank_rlhf.run.checkpoints import latest_checkpoint
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import write_json_atomic
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.records import Prompt
from lowrank_rlhf.run.results import Claim, RewardResult, ScoresOf, ScoreStatistics
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import SCALE_PROMPTS
from lowrank_rlhf.training.nan_recovery import RollBack, SkipReport
from lowrank_rlhf.training.optimizer_step import NotFinite, all_reduce_gradients, clip_gradients, finite_step
from lowrank_rlhf.training.prompts import first_fitting, max_prompt_tokens
from lowrank_rlhf.training.reward_data import (
    Group,
    HeadFit,
    fit_head,
    group_batches,
    group_loss,
    read_groups,
    rows_of,
    split_groups,
    split_scores,
    with_length,
)
from lowrank_rlhf.training.role_checkpoints import RoleCheckpoints
from lowrank_rlhf.training.rollout import RewardScale
from lowrank_rlhf.training.self_checks import checksums, weights_unchanged


def run(session: Session) -> RewardResult:
    """Write `adapters/reward`, a PEFT folder with the head and `reward.json` (pooling and score statistics).

    `scores.jsonl` contains its score of every ranked answer.
    """
    config, settings, roles, run_dir = session.config, session.config.reward, session.load_roles(), session.run_dir
    work, before = session.work("reward"), roles.base.checksum()
    groups, note = read_groups(roles.base, run_dir, config.model.max_length)
    if note:
        session.progress.say(f"  {note}")
    train, held_out = split_groups(groups, settings.held_out, session.seed("reward", "split"))
    last = scores_of_last_round(roles, run_dir, held_out)
    load_role(roles, Role.POLICY, run_dir.artifact("adapters/sft"))
    roles.copy(Role.POLICY, Role.REFERENCE)
    roles.copy(Role.POLICY, Role.REWARD)
    roles.new_head(Role.REWARD, torch.Generator().manual_seed(session.seed("reward", "head")))
    others = checksums(roles, [Role.POLICY, Role.REFERENCE])
    scores, fit = _train_and_score(config, roles, train, held_out, run_dir, session.progress, session.stop)
    scale = fit.scale(settings)
    of_held_out = scores[len(train) :]
    bootstrap = config.evaluate.bootstrap_samples, session.seed("bootstrap")
    figures = held_out_accuracy(held_out, of_held_out, *bootstrap)
    _report_accuracy(figures, len(train), ranked_earlier(run_dir, groups), run_dir, session.progress)
    ranked_are_sft = config.rank.source != "dataset" and run_dir.number == 1
    prompts = None if ranked_are_sft else session.prompts.training
    statistics = _score_statistics(config, roles, prompts, scale, torch.cat(scores), session.progress)
    audit = audit_prompts(roles, held_out, of_held_out, scale, *bootstrap, session.progress)
    session.progress.say(f"  {audit_in_words(audit)}")
    found = weakness(figures)
    weak = found and weakness_in_words(found, figures)
    folder = work / "adapters" / "reward"
    save_role(roles, Role.REWARD, folder)
    write_scores(work / "scores.jsonl", [*train, *held_out], scores, len(train))
    about = {"pooling": settings.pooling, "layers": roles.head_layers, **statistics.model_dump(), "weak": weak}
    about |= {"length_weight": scale.length} if scale.length else {}
    write_json_atomic(folder / "reward.json", {"schema": 1, **about})
    rounds = {"by_round": accuracy_by_round(run_dir, held_out, of_held_out, last, *bootstrap)} if last else {}
    return RewardResult(
        prompts_train=len(train),
        pairs_train=sum(len(group.pairs) for group in train),
        **asdict(figures),
        **statistics.model_dump(),
        weakness=found,
        weak=weak,
        verdict=verdict_in_words(figures),
        prompt_audit=audit,
        head_l2=fit.l2,
        message=accuracy_in_words(figures),
        claims=(
            _reload_claim(roles, folder, held_out[:4], scale),
            *weights_unchanged(roles, "the reward stage", before, others),
        ),
    ).model_copy(update=rounds)


def _train_and_score(
    config: Config,
    roles: Roles,
    train: Sequence[Group],
    held_out: Sequence[Group],
    run_dir: RunDir,
    progress: Progress,
    stop: StopRequest,
) -> tuple[list[Tensor], HeadFit]:
    """Fit the head and train the adapter; return each group's scores, training groups first, and the head's record."""
    settings, every, work = config.reward, [*train, *held_out], run_dir.work("reward")
    features, fit = None, HeadFit.saved(work)
    if settings.fit_head_first and not latest_checkpoint(work):  # otherwise it was fitted before
        features = _features(roles, every, settings.pooling, progress)
        weight, fit = fit_head(train, features[: len(train)], settings, derive_seed(config.seed, "reward", "folds"))
        _set_head(roles, weight)
        fit.save(work)
        progress.say(f"  {fit.in_words(settings)}")
    if settings.epochs:
        train_adapter(
            settings, config.seed, roles, train, fit.training_scale(settings.pooling), run_dir, progress, stop
        )
    scale = fit.scale(settings)
    if features is None or settings.epochs:
        return raw_scores(roles, every, scale), fit
    # The adapter has not changed since the features were read.
    head = torch.cat([roles.heads[Role.REWARD].weight[0].cpu(), torch.tensor([scale.length])])
    return [with_length(group, own) @ head for group, own in zip(every, features, strict=True)], fit  # (K,) each


def _report_accuracy(figures: HeldOutAccuracy, prompts: int, earlier: int, run_dir: RunDir, progress: Progress) -> None:
    """Print the accuracy, and record it in the run's events."""
    progress.say(f"  {accuracy_in_words(figures)}")
    test = RewardTest(
        prompts=prompts, held_out=figures.prompts_held_out, earlier=earlier, accuracy=figures.accuracy,
        interval=figures.accuracy_interval, weakness=weakness(figures),
    )  # fmt: skip
    record_reward_test(run_dir, test)


def _score_statistics(
    config: Config,
    roles: Roles,
    prompts: Sequence[Prompt] | None,
    scale: RewardScale,
    ranked: Tensor,
    progress: Progress,
) -> ScoreStatistics:
    """Return mean and deviation of the scores of SFT's answers.

    `ranked` are the scores of all ranked answers, which are SFT's if `prompts` is None. Those of a data set or of a
    policy would shift and clip PPO's scores wrongly: SFT then answers some of the prompts, if two or more fit.
    """
    if prompts is None:
        return _statistics(ranked, "SFT answers")
    prompts = first_fitting(roles.base, prompts, max_prompt_tokens(config), SCALE_PROMPTS)
    if len(prompts) < 2:
        return _statistics(ranked, "the compared answers")
    progress.say(f"  sampling SFT answers to {len(prompts)} prompts for the scale of the scores")
    answers = answer_prompts(roles, Role.POLICY, prompts, config.sample, derive_seed(config.seed, "reward", "scale"))
    first = [samples[0] for samples in answers]
    scores = score_answers(roles, prompts, first, config.sample.max_new_tokens, scale)
    return _statistics(torch.tensor(scores), "SFT answers")


def _statistics(scores: Tensor, of: ScoresOf) -> ScoreStatistics:
    return ScoreStatistics(score_mean=float(scores.mean()), score_std=max(float(scores.std()), 1e-6), scores_of=of)


def _features(roles: Roles, groups: Sequence[Group], pooling: str, progress: Progress) -> list[Tensor]:
    """Return the features of each group's answers that the head reads, (K, h) each, on the CPU."""
    prompts, answers = [group.prompt for group in groups], [group.answers for group in groups]

    def read() -> Tensor:
        with progress.track("reward", sum(map(len, answers)), "answers read") as bar:
            return answer_features(roles, Role.REWARD, prompts, answers, pooling, bar.advance)

    features = roles.base.limits.retry(read, max(group.width for group in groups)).cpu()
    require_finite(Role.REWARD, "hidden states", features, prompts_of(groups))
    return split_scores(features, groups)


def _set_head(roles: Roles, weight: Tensor) -> None:
    with torch.no_grad():
        roles.heads[Role.REWARD].weight.copy_(weight[None])


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
    total, right = torch.zeros(2, dtype=torch.float64, device=base.device)
    with roles.acting_as(Role.REWARD, train=True):
        for part in roles.group.shard(group_batches(groups, base.limits.tokens, roles.group.world_size)):
            rows = rows_of(part, base)  # (N, T), N = all answers of the part's groups
            scores = split_scores(scale.raw(roles.scores(rows), rows.response), part)  # (N, T) -> one (K,) per prompt
            # All pairs of a prompt are one element, so that a prompt with many answers does not dominate the batch
            # (Ouyang et al. 2022, section 3.5): K forwards, not K(K-1).
            losses = [group_loss(s, group, config.loss, config.margin) for s, group in zip(scores, part, strict=True)]
            loss = torch.stack(losses).sum() / len(groups)  # scalar; parts of all processes add up to the mean
            roles.backward(loss)
            total += loss.detach()
            for found, group in zip(scores, part, strict=True):
                better, worse, _ = map(list, zip(*group.pairs, strict=True))
                right += (found[better] > found[worse]).sum()
    all_reduce_gradients(roles.group, optimizer, total, right)
    norm = clip_gradients(optimizer, config.max_grad_norm)
    mean, rightly, grad_norm = torch.stack([total, right, norm.double()]).tolist()  # one wait for the device
    finite_step(optimizer, "reward model", mean, grad_norm)
    return mean, rightly / sum(len(group.pairs) for group in groups)


def _reload_claim(roles: Roles, folder: Path, groups: Sequence[Group], scale: RewardScale) -> Claim:
    before = torch.cat(raw_scores(roles, groups, scale))
    load_role(roles, Role.REWARD, folder)
    difference = float((torch.cat(raw_scores(roles, groups, scale)) - before).abs().max())
    text = "the saved reward model scores as before after a reload"
    return Claim(id="reward_reloads", claim=text, figure=difference, holds=difference == 0)
