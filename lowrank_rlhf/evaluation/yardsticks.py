"""Yardsticks of the final evaluation: best-of-n from SFT, greedy answers, and the base's answers.

All are compared with SFT's sampled answers to the first test prompts, by the judges and the reward model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowrank_rlhf.config.ppo import PpoConfig
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.evaluation.answer_pair import REWARD_MODEL, REWARDS, SCORE, AnswerPair
from lowrank_rlhf.evaluation.match import absolute_verdicts, judge_pairs, score_answers
from lowrank_rlhf.evaluation.match_metrics import kl_values, score_values, win_values
from lowrank_rlhf.evaluation.sampling import answer_greedily, answer_prompts
from lowrank_rlhf.maths.best_of_n import nearest_best_of_n
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.maths.statistics import bootstrap_interval
from lowrank_rlhf.models.adapters import fill_role, load_role
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.preferences.judges.loading import Judge
from lowrank_rlhf.run.progress import Bar, Progress, StopRequest
from lowrank_rlhf.run.records import Prompt, Sample
from lowrank_rlhf.run.results.yardsticks import Yardstick, YardstickId, Yardsticks, YardstickScore
from lowrank_rlhf.training.rewards.reward_sum import RewardSum, Scorer
from lowrank_rlhf.training.rollout import shape_scores

SEED_KEY = "best of n"
"""Seed key of the answers to choose from: none of them is the sampled answer that the best one is compared with."""

Answers = dict[YardstickId, list[Sample]]
"""One answer to each prompt."""
Pairs = dict[YardstickId, list[AnswerPair]]
"""SFT's sampled answer to each prompt beside another one."""


@dataclass(frozen=True)
class MeasuredYardsticks:
    """Figures of the yardsticks, and greedy answers as columns for the rows of eval.jsonl, by prompt id."""

    figures: Yardsticks
    greedy: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class EvaluatedModels:
    """Roles with SFT in REFERENCE, the policy in POLICY and any reward model in REWARD, as the evaluation uses them."""

    roles: Roles
    scorer: Scorer
    sft: Path
    """Folder of the SFT adapter."""

    def scores(self, prompts: Sequence[Prompt], answers: Sequence[Sample], max_new_tokens: int) -> list[float]:
        """Return the score of one answer to each prompt."""
        return score_answers(self.roles, prompts, answers, max_new_tokens, self.scorer)

    @property
    def score_name(self) -> str:
        """Name of the scores among the names of judges."""
        return REWARDS if isinstance(self.scorer, RewardSum) else REWARD_MODEL


def measure_yardsticks(
    models: EvaluatedModels,
    pairs: Sequence[AnswerPair],
    config: Config,
    judges: Mapping[str, Judge],
    progress: Progress,
    stop: StopRequest,
) -> MeasuredYardsticks:
    """Sample and judge the yardsticks' answers to the first `evaluate.yardstick_prompts` of the prompts.

    Args:
        models: the models under comparison.
        pairs: judged pairs of all test prompts, grouped by prompt; the first one of each prompt is the sampled one.
        config: settings of the run.
        judges: the judges of the pairs by key.
        progress: progress of the stage.
        stop: stop request of the run.
    """
    settings = config.evaluate
    sampled = list(pairs[:: settings.answers_per_prompt][: settings.yardstick_prompts])
    matched = nearest_best_of_n(float(kl_values(pairs).mean()))
    with progress.track("yardsticks", (3 + matched.n) * len(sampled), "answers") as bar:
        answers = _answer(models, [pair.prompt for pair in sampled], matched.n, config, bar, stop)
    found = _judged(models, sampled, answers, config.sample.max_new_tokens, judges, progress, stop)
    found["policy_sampled"] = sampled
    names = {**{key: judge.name for key, judge in judges.items()}, SCORE: models.score_name}
    order: tuple[YardstickId, ...] = ("sft_greedy", "best_of_n", "policy_sampled", "policy_greedy", "base_greedy")
    figures = Yardsticks(
        prompts=len(sampled),
        n=matched.n,
        best_of_n_kl=matched.kl,
        capped=matched.capped,
        rows=(_sft_row(sampled, names), *(_row(key, found[key], names, config) for key in order)),
    )
    return MeasuredYardsticks(figures, greedy_columns(found["sft_greedy"], found["policy_greedy"]))


def choose_best(
    groups: Sequence[Sequence[Sample]], scores: Sequence[Sequence[float]], config: PpoConfig
) -> list[Sample]:
    """Return the answer of each group whose shaped score, which PPO maximises, is the highest.

    Args:
        groups: n answers to each of N prompts.
        scores: the reward model's scores of these answers, (N, n).
        config: shapes the scores: clipping, and answers that do not end. Equal ones are ordered by the plain score.
    """
    plain = torch.tensor(scores, dtype=torch.float64)  # (N, n)
    finished = torch.tensor([[sample.finished for sample in group] for group in groups])
    shaped = shape_scores(plain.flatten(), finished.flatten(), config).view(plain.shape)
    best = []
    for group, *both in zip(groups, shaped.tolist(), plain.tolist(), strict=True):
        ranked = list(zip(*both, strict=True))
        best.append(group[ranked.index(max(ranked))])
    return best


def greedy_columns(sft: Sequence[AnswerPair], policy: Sequence[AnswerPair]) -> dict[str, dict[str, Any]]:
    """Return both models' greedy answers with their scores as columns of a row, by prompt id."""
    rows: dict[str, dict[str, Any]] = {pair.prompt.id: {} for pair in sft}
    for side, pairs in (("greedy_sft", sft), ("greedy_policy", policy)):
        for pair in pairs:
            scores = {key: verdict.scores[1] for key, verdict in pair.verdicts.items() if verdict.scores}
            rows[pair.prompt.id] |= {side: pair.candidate.text} | {f"{key}_{side}": x for key, x in scores.items()}
    return rows


def _answer(
    models: EvaluatedModels, prompts: Sequence[Prompt], n: int, config: Config, bar: Bar, stop: StopRequest
) -> Answers:
    """Return all new answers. The role REFERENCE is the base in between, and SFT again at the end."""
    roles, sampling = models.roles, config.sample
    seed = derive_seed(config.seed, SEED_KEY)
    groups = answer_prompts(roles, Role.REFERENCE, prompts, sampling, seed, answers_per_prompt=n, bar=bar, stop=stop)
    columns = [models.scores(prompts, [group[k] for group in groups], sampling.max_new_tokens) for k in range(n)]
    answers: Answers = {
        "best_of_n": choose_best(groups, list(zip(*columns, strict=True)), config.ppo),
        "sft_greedy": answer_greedily(roles, Role.REFERENCE, prompts, sampling, bar=bar, stop=stop),
        "policy_greedy": answer_greedily(roles, Role.POLICY, prompts, sampling, bar=bar, stop=stop),
    }
    fill_role(roles, Role.REFERENCE, None)
    answers["base_greedy"] = answer_greedily(roles, Role.REFERENCE, prompts, sampling, bar=bar, stop=stop)
    load_role(roles, Role.REFERENCE, models.sft)
    return answers


def _judged(
    models: EvaluatedModels,
    sampled: Sequence[AnswerPair],
    answers: Answers,
    max_new_tokens: int,
    judges: Mapping[str, Judge],
    progress: Progress,
    stop: StopRequest,
) -> Pairs:
    """Return each yardstick's answers beside SFT's sampled ones, with all verdicts."""
    prompts, baseline = [pair.prompt for pair in sampled], [pair.baseline for pair in sampled]
    scores = score_values(sampled, SCORE)
    assert scores is not None  # noqa: S101 - the reward model's scores are absolute
    pairs: list[AnswerPair] = []
    for found in answers.values():
        verdicts = absolute_verdicts(scores[0], models.scores(prompts, found, max_new_tokens))
        rows = zip(prompts, baseline, found, verdicts, strict=True)
        # Their KL is not measured: best-of-n has no log-probabilities, and that of a greedy answer means little.
        pairs += [AnswerPair(prompt, sft, other, math.nan, {SCORE: verdict}) for prompt, sft, other, verdict in rows]
    judged = judge_pairs(judges, pairs, progress, stop)
    return {key: judged[i * len(sampled) : (i + 1) * len(sampled)] for i, key in enumerate(answers)}


def _row(key: YardstickId, pairs: Sequence[AnswerPair], names: Mapping[str, str], config: Config) -> Yardstick:
    samples, seed = config.evaluate.bootstrap_samples, derive_seed(config.seed, "bootstrap")

    def score(judge: str) -> YardstickScore:
        won, scores = win_values(pairs, judge), score_values(pairs, judge)
        return YardstickScore(
            judge=names[judge],
            mean_score=float(np.mean(scores[1])) if scores else None,
            win_rate=float(won.mean()),
            win_rate_interval=bootstrap_interval(won, samples, seed),
        )

    return Yardstick(id=key, scores=tuple(map(score, names)))


def _sft_row(pairs: Sequence[AnswerPair], names: Mapping[str, str]) -> Yardstick:
    """Return the mean scores of SFT's sampled answers, with which all others are compared."""
    found = {judge: score_values(pairs, judge) for judge in names}
    means = {judge: float(np.mean(scores[0])) if scores else None for judge, scores in found.items()}
    return Yardstick(
        id="sft_sampled", scores=tuple(YardstickScore(judge=names[judge], mean_score=x) for judge, x in means.items())
    )
