"""Stage 2c: train the reward adapter and its head on the comparisons, starting from SFT."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrank_rlhf.config.schema import Config, RewardConfig
from lowrank_rlhf.errors import visible
from lowrank_rlhf.evaluation.learning_curve import enough_for_curve, learning_curve, save_curve, saved_curve
from lowrank_rlhf.evaluation.match import finite_scores, pack_answers
from lowrank_rlhf.evaluation.prompt_audit import audit_in_words, audit_prompts
from lowrank_rlhf.evaluation.reward_metrics import (
    HeldOutAccuracy,
    accuracy_in_words,
    held_out_accuracy,
    member_accuracies,
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
from lowrank_rlhf.preferences.reward_tests import LearningCurve, RewardTest, record_reward_test
from lowrank_rlhf.preferences.team.reliability import FEWEST, annotator_weights
from lowrank_rlhf.run.checkpoints import latest_checkpoint
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import write_json_atomic
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.records import Comparison, Prompt
from lowrank_rlhf.run.results import Claim, RewardResult, ScoresOf, ScoreStatistics
from lowrank_rlhf.session import Session
from lowrank_rlhf.stages import SCALE_PROMPTS
from lowrank_rlhf.training.prompts import first_fitting, max_prompt_tokens
from lowrank_rlhf.training.reward_data import Group, bootstrapped, every_round, read_groups, split_groups, split_scores
from lowrank_rlhf.training.rewards.ensemble import Ensemble, common_scale
from lowrank_rlhf.training.rewards.reward_head import HeadFit, fit_head, with_length
from lowrank_rlhf.training.rewards.reward_training import train_adapter
from lowrank_rlhf.training.rollout import RewardScale
from lowrank_rlhf.training.self_checks import checksums, weights_unchanged


def run(session: Session) -> RewardResult:
    """Write `adapters/reward`, a PEFT folder with the head and `reward.json` (pooling and score statistics).

    `scores.jsonl` contains its score of every ranked answer.
    """
    config, settings, roles, run_dir = session.config, session.config.reward, session.load_roles(), session.run_dir
    work, before = session.work("reward"), roles.base.checksum()
    weights = _annotator_weights(settings, run_dir, session.progress)
    groups, note = read_groups(roles.base, run_dir, config.model.max_length, weights)
    if note:
        session.progress.say(f"  {note}")
    train, held_out = split_groups(groups, settings.held_out, session.seed("reward", "split"))
    train = bootstrapped(train, settings.members, session.seed("reward", "bootstrap"))
    last = scores_of_last_round(roles, run_dir, held_out)
    load_role(roles, Role.POLICY, run_dir.artifact("adapters/sft"))
    roles.copy(Role.POLICY, Role.REFERENCE)
    roles.copy(Role.POLICY, Role.REWARD)
    roles.new_head(Role.REWARD, torch.Generator().manual_seed(session.seed("reward", "head")))
    others = checksums(roles, [Role.POLICY, Role.REFERENCE])
    scores, fit, curve = _train_and_score(config, roles, train, held_out, run_dir, session.progress, session.stop)
    scale = fit.scale(settings)
    ranked_are_sft = config.rank.source != "dataset" and run_dir.number == 1
    prompts = None if ranked_are_sft else session.prompts.training
    reference, of = _reference_scores(config, roles, prompts, scale, torch.cat(scores), session.progress)
    by_member: dict[str, Any] = {}
    if settings.members > 1:
        scale, scores, reference, by_member = _combine(roles, settings, scale, scores, reference, held_out)
    statistics = _statistics(reference, of)
    of_held_out = scores[len(train) :]
    bootstrap = config.evaluate.bootstrap_samples, session.seed("bootstrap")
    figures = held_out_accuracy(held_out, of_held_out, *bootstrap)
    _report_accuracy(figures, len(train), ranked_earlier(run_dir, groups), curve, run_dir, session.progress)
    audit = audit_prompts(roles, held_out, of_held_out, scale, *bootstrap, session.progress)
    session.progress.say(f"  {audit_in_words(audit)}")
    found = weakness(figures)
    weak = found and weakness_in_words(found, figures)
    folder = work / "adapters" / "reward"
    save_role(roles, Role.REWARD, folder)
    write_scores(work / "scores.jsonl", [*train, *held_out], scores, len(train))
    about = {"pooling": settings.pooling, "layers": roles.head_layers, **statistics.model_dump(), "weak": weak}
    about |= {"length_weight": scale.length} if scale.length else {}
    about |= {"members": asdict(scale.ensemble)} if scale.ensemble else {}
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
    ).model_copy(update=rounds | by_member | ({"annotator_weights": weights} if weights else {}))


def _train_and_score(
    config: Config,
    roles: Roles,
    train: Sequence[Group],
    held_out: Sequence[Group],
    run_dir: RunDir,
    progress: Progress,
    stop: StopRequest,
) -> tuple[list[Tensor], HeadFit, LearningCurve | None]:
    """Fit the head and train the adapter; return each group's scores, the head's record, and its learning curve.

    Training groups come first. The scores are (K,), and (K, M) of M > 1 members.
    """
    settings, every, work = config.reward, [*train, *held_out], run_dir.work("reward")
    features, fit, curve = None, HeadFit.saved(work), saved_curve(work)
    if settings.fit_head_first and not latest_checkpoint(work):  # otherwise it was fitted before
        features = _features(roles, every, settings.pooling, progress)
        weight, fit = fit_head(train, features[: len(train)], settings, derive_seed(config.seed, "reward", "folds"))
        with torch.no_grad():
            roles.heads[Role.REWARD].weight.copy_(weight)
        fit.save(work)
        progress.say(f"  {fit.in_words(settings)}")
        same = settings.model_copy(update={"head_l2": fit.l2})
        seed, samples = derive_seed(config.seed, "reward", "curve"), config.evaluate.bootstrap_samples
        if enough_for_curve(train, held_out):
            progress.say("  fitting heads to parts of the rankings for the learning curve")
        whole = (weight, fit) if settings.members == 1 else None
        curve = learning_curve(train, held_out, features, same, seed, samples, whole, stop)
        save_curve(work, curve)
    if settings.epochs:
        train_adapter(
            settings, config.seed, roles, train, fit.training_scale(settings.pooling), run_dir, progress, stop
        )
    scale = fit.scale(settings)
    if features is None or settings.epochs:
        return raw_scores(roles, every, scale), fit, curve
    # The adapter has not changed since the features were read.
    heads = roles.heads[Role.REWARD].weight.cpu()  # (M, h)
    head = torch.cat([heads, torch.full((len(heads), 1), scale.length)], 1).squeeze(0).t()  # (h + 1,), or (h + 1, M)
    return [with_length(group, own) @ head for group, own in zip(every, features, strict=True)], fit, curve


def _annotator_weights(settings: RewardConfig, run_dir: RunDir, progress: Progress) -> dict[str, float] | None:
    """Return and print the weight of each annotator; None if all are equal, by the settings or as not estimated."""
    if settings.annotator_weights == "equal":
        return None
    weights, common = annotator_weights(every_round(run_dir, "comparisons.jsonl", Comparison))
    shown = ", ".join(f"{visible(name)} {weight:.2f}" for name, weight in weights.items())
    not_estimated = f"not estimated: {common} of {FEWEST} annotators with common prompts; all weigh the same"
    progress.say(f"  weights of the annotators by reliability: {shown or not_estimated}")
    return weights or None


def _report_accuracy(
    figures: HeldOutAccuracy,
    prompts: int,
    earlier: int,
    curve: LearningCurve | None,
    run_dir: RunDir,
    progress: Progress,
) -> None:
    """Print the accuracy and what further rankings would gain, and record both in the run's events."""
    progress.say(f"  {accuracy_in_words(figures)}")
    if curve:
        progress.say(f"  {curve.in_words()}")
    test = RewardTest(
        prompts=prompts, held_out=figures.prompts_held_out, earlier=earlier, accuracy=figures.accuracy,
        interval=figures.accuracy_interval, weakness=weakness(figures), curve=curve,
    )  # fmt: skip
    record_reward_test(run_dir, test)


def _reference_scores(
    config: Config,
    roles: Roles,
    prompts: Sequence[Prompt] | None,
    scale: RewardScale,
    ranked: Tensor,
    progress: Progress,
) -> tuple[Tensor, ScoresOf]:
    """Return the raw scores of N answers of SFT, (N,) or (N, M), of which mean and deviation are the scale of scores.

    `ranked` are the scores of all ranked answers, which are SFT's if `prompts` is None. Those of a data set or of a
    policy would shift and clip PPO's scores wrongly: SFT then answers some of the prompts, if two or more fit.
    """
    if prompts is None:
        return ranked, "SFT answers"
    prompts = first_fitting(roles.base, prompts, max_prompt_tokens(config), SCALE_PROMPTS)
    if len(prompts) < 2:
        return ranked, "the compared answers"
    progress.say(f"  sampling SFT answers to {len(prompts)} prompts for the scale of the scores")
    answers = answer_prompts(roles, Role.POLICY, prompts, config.sample, derive_seed(config.seed, "reward", "scale"))
    first = [samples[0] for samples in answers]
    batch = pack_answers(roles, prompts, first, config.sample.max_new_tokens)
    return finite_scores(roles, batch, scale, prompts, first).total.cpu(), "SFT answers"


def _combine(
    roles: Roles,
    settings: RewardConfig,
    scale: RewardScale,
    scores: Sequence[Tensor],
    reference: Tensor,
    held_out: Sequence[Group],
) -> tuple[RewardScale, list[Tensor], Tensor, dict[str, Any]]:
    """Give the members' heads a common scale on the reference answers; return the combined scores, and their figures.

    `scores` are (K, M) of each group, held-out groups last, and `reference` (N, M). The figures are those of
    `RewardResult` that several members have.
    """
    factors = common_scale(reference)  # (M,)
    weight = roles.heads[Role.REWARD].weight
    with torch.no_grad():
        weight.mul_(factors[:, None].to(weight))
    scores, reference = [own * factors for own in scores], reference * factors
    ensemble = Ensemble.on(reference, settings.combine, settings.spread_weight)
    combined = ensemble.combined(reference)  # (N,)
    spread = float(ensemble.spread(reference).mean() / _statistics(combined, "SFT answers").score_std)
    figures = {"member_accuracies": member_accuracies(held_out, scores[-len(held_out) :]), "score_spread": spread}
    return replace(scale, ensemble=ensemble), list(map(ensemble.combined, scores)), combined, figures


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


def _reload_claim(roles: Roles, folder: Path, groups: Sequence[Group], scale: RewardScale) -> Claim:
    before = torch.cat(raw_scores(roles, groups, scale))
    load_role(roles, Role.REWARD, folder)
    difference = float((torch.cat(raw_scores(roles, groups, scale)) - before).abs().max())
    text = "the saved reward model scores as before after a reload"
    return Claim(id="reward_reloads", claim=text, figure=difference, holds=difference == 0)
