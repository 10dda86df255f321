"""The last stage: SFT against the policy on test prompts, and the report."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.prompts import PromptData
from lowrank_rlhf.evaluation.answer_pair import REWARD_MODEL, SCORE, STAGE_SIDES, AnswerPair, reward_column
from lowrank_rlhf.evaluation.final_checks import with_final_checks
from lowrank_rlhf.evaluation.match import SEED_KEY, judge_pairs, measure_pairs
from lowrank_rlhf.evaluation.match_metrics import (
    Figure,
    kl_values,
    mean_per_prompt,
    mean_score_figure,
    score_values,
    text_figures,
    win_rate_figure,
    win_values,
)
from lowrank_rlhf.evaluation.reward_metrics import load_reward_model
from lowrank_rlhf.evaluation.run_judges import open_judge
from lowrank_rlhf.evaluation.sampling import answer_prompts
from lowrank_rlhf.evaluation.yardsticks import EvaluatedModels, measure_yardsticks
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.maths.statistics import Floats, Interval, bootstrap_interval, mean_shift
from lowrank_rlhf.models.adapters import load_role
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.preferences.judges.loading import Judge
from lowrank_rlhf.reports.render import write_report
from lowrank_rlhf.reports.terminal import summary_message
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import append_line
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.records import Prompt
from lowrank_rlhf.run.results import EvaluateResult, FigureRow
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.rewards.reward_sum import RewardSum, open_scorer


def run(session: Session) -> EvaluateResult:
    """Write `eval.jsonl`, `report.html` and `report.md`."""
    config, run_dir, work = session.config, session.run_dir, session.work("evaluate")
    progress, stop = session.progress, session.stop
    judges = _judges(config, run_dir.run, progress, stop)
    prompts = session.prompts
    models = _load_models(session.load_roles(), config, session.data.prompts, run_dir, progress, stop)
    pairs = judge_pairs(judges, _pairs(models, config, prompts.test, progress, stop), progress, stop)
    rows = [pair.row(STAGE_SIDES) for pair in pairs]
    names = {key: judge.name for key, judge in judges.items()}
    result = _result(config, pairs, names, models.score_name, not prompts.divided)
    result = with_final_checks(result, models.roles, pairs, config)
    if config.evaluate.yardstick_prompts:
        yardsticks = measure_yardsticks(models, pairs, config, judges, progress, stop)
        result = result.model_copy(update={"yardsticks": yardsticks.figures})
        first = {row["prompt_id"]: row for row in reversed(rows)}  # the first row of each prompt
        for prompt, columns in yardsticks.greedy.items():
            first[prompt].update(columns)
    eval_path = work / "eval.jsonl"
    eval_path.unlink(missing_ok=True)
    for row in rows:
        append_line(eval_path, row)
    results = run_dir.results().model_copy(update={"evaluate": result})
    write_report(run_dir, results, rows, work)
    message = summary_message(run_dir, results, rows, run_dir.artifact("report.html"))
    return result.model_copy(update={"message": message})


def _judges(config: Config, run_folder: Path, progress: Progress, stop: StopRequest) -> dict[str, Judge]:
    """Open `judge`, the one that ranked the answers, and `second`, as far as the config names them."""
    rank, second = config.rank, config.evaluate.second_judge
    first = config.ranking_judge
    names = {key: name for key, name in (("judge", first), ("second", second)) if name}
    opened = {  # the same endpoint twice is one judge, so that its verdicts are asked for once
        name: open_judge(name, rank, run_folder, progress, stop) for name in dict.fromkeys(names.values())
    }
    return {key: opened[name] for key, name in names.items()}


def _load_models(
    roles: Roles, config: Config, prompts: PromptData, run_dir: RunDir, progress: Progress, stop: StopRequest
) -> EvaluatedModels:
    ppo, sft = config.ppo, run_dir.artifact("adapters/sft")
    load_role(roles, Role.REFERENCE, sft)
    load_role(roles, Role.POLICY, run_dir.artifact("adapters/policy"))
    normalize = ppo.normalize_score or not ppo.rewards
    scale = load_reward_model(roles, run_dir.artifact("adapters/reward"), normalize) if ppo.uses_reward_model else None
    scorer = open_scorer(config, scale, prompts, run_dir.run, progress, stop)
    if isinstance(scorer, RewardSum) and (trained := run_dir.results().ppo):
        scorer = scorer.as_trained(trained.rewards)
    return EvaluatedModels(roles, scorer, sft)


def _pairs(
    models: EvaluatedModels, config: Config, prompts: Sequence[Prompt], progress: Progress, stop: StopRequest
) -> list[AnswerPair]:
    """Sample SFT's and the policy's answers to the test prompts and measure them; pairs of one prompt are adjacent."""
    roles = models.roles
    seed, sampling, count = derive_seed(config.seed, SEED_KEY), config.sample, config.evaluate.answers_per_prompt
    with progress.track("evaluate", 2 * len(prompts) * count, "answers") as bar:
        sft, policy = (
            [sample for group in groups for sample in group]
            for groups in (
                answer_prompts(roles, role, prompts, sampling, seed, answers_per_prompt=count, bar=bar, stop=stop)
                for role in (Role.REFERENCE, Role.POLICY)
            )
        )
        repeated = [prompt for prompt in prompts for _ in range(count)]
        return measure_pairs(roles, repeated, sft, policy, sampling, models.scorer, rows_per_batch=len(prompts))


def _result(
    config: Config, pairs: Sequence[AnswerPair], judges: Mapping[str, str], score_name: str, selected_on_test: bool
) -> EvaluateResult:
    """Return the figures, with the win rate by the judge (by the scores, named `score_name`, if there is none)."""
    settings, seed = config.evaluate, derive_seed(config.seed, "bootstrap")

    def interval(values: Floats) -> Interval:
        """Resample prompts, each with all its answers."""
        means = mean_per_prompt(values, settings.answers_per_prompt)
        return bootstrap_interval(means, settings.bootstrap_samples, seed)

    decides = "judge" if "judge" in judges else SCORE
    won, kl = win_values(pairs, decides), kl_values(pairs)
    scores = score_values(pairs, decides)
    scores_of = {SCORE: score_name, **{reward_column(name): name for name in config.ppo.rewards}}
    return EvaluateResult(
        prompts=len(pairs) // settings.answers_per_prompt,
        answers_per_prompt=settings.answers_per_prompt,
        selected_on_test=selected_on_test,
        judge=judges.get("judge", None if score_name == REWARD_MODEL else score_name),
        second_judge=judges.get("second"),
        win_rate=float(won.mean()),
        win_rate_interval=interval(won),
        mean_shift=mean_shift(scores[1], scores[0]) if scores else None,
        kl_per_answer=float(np.mean(kl)),
        kl_mean_interval=interval(kl),
        table=tuple(_figure_row(figure) for figure in _figures(pairs, judges, scores_of, interval)),
    )


def _figures(
    pairs: Sequence[AnswerPair],
    judges: Mapping[str, str],
    scores_of: Mapping[str, str],
    interval: Callable[[Floats], Interval],
) -> Iterator[Figure]:
    for key, name in (*judges.items(), *scores_of.items()):
        if figure := mean_score_figure(pairs, key, name):
            yield figure
    if "second" in judges:
        yield win_rate_figure(pairs, "second", judges["second"], interval(win_values(pairs, "second")))
    yield from (figure for figure in text_figures(pairs) if figure.id != "length_characters")


def _figure_row(figure: Figure) -> FigureRow:
    sft, policy = figure.values
    note = "a judge that nothing was tuned on" if figure.id == "win_rate" else figure.note(STAGE_SIDES)
    known = {name: value for name in ("judge", "interval", "openers") if (value := getattr(figure, name)) is not None}
    return FigureRow(id=figure.id, figure=figure.label, sft=sft, policy=policy, note=note, **known)
