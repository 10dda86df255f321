"""Evaluations of the policy against SFT on validation prompts while it is trained, whatever the algorithm."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrank_rlhf.config.ppo import PpoConfig
from lowrank_rlhf.config.schema import Config, SampleConfig
from lowrank_rlhf.evaluation.match import Divergence, divergence, pack_answers
from lowrank_rlhf.evaluation.run_judges import JudgeRole, followed_judges, open_judge
from lowrank_rlhf.evaluation.sampling import answer_prompts
from lowrank_rlhf.maths.kl import kl_penalty
from lowrank_rlhf.maths.seeds import derive_seed
from lowrank_rlhf.maths.sequences import Sequences
from lowrank_rlhf.maths.statistics import win_rate
from lowrank_rlhf.models.adapters import replaced
from lowrank_rlhf.models.allocator import release_if_short
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.scoring import Scored, not_finite, score_logprobs
from lowrank_rlhf.preferences.judges.loading import Judge
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.records import Prompt, Sample
from lowrank_rlhf.training.rewards.reward_sum import RewardSum, Scorer
from lowrank_rlhf.training.rollout import shape_scores

OnNotFinite = Callable[[str, Sequences, Mapping[str, Tensor]], Exception]
"""Builds the exception that ends training, from the reason, the batch, and further tensors."""

SEED_KEY = "held-out answers"
"""Seed key of the answers, the same at every evaluation; the final evaluation has its own."""
WATCHED_PROMPTS = 8
"""Number of validation prompts whose answers are saved at each evaluation, for people to read."""

MOST_CLIPPED = 0.2
"""Share of SFT's scores beyond `ppo.score_clip` from which there is a warning: of z-scores almost none is beyond 5."""


@dataclass(frozen=True)
class FollowedJudge:
    """Judge whose scores are followed next to the reward model's."""

    judge: Judge
    role: JudgeRole
    """Name among the figures."""

    def scores(self, prompts: Sequence[Prompt], answers: Sequence[Sample]) -> list[float]:
        """Return the score of one answer to each prompt."""
        return [self.judge.score(prompt, [sample])[0] for prompt, sample in zip(prompts, answers, strict=True)]


@dataclass(frozen=True)
class PolicyAnswers:
    """One answer of the policy to each of N validation prompts."""

    samples: list[Sample]
    batch: Sequences
    """(N, T), prompts with answers."""
    scored: Scored
    """(N,), the reward model's scores (0 on average over SFT's answers) or the sums of the rewards."""
    kl: Tensor
    """(N,), nats of each answer: log policy - log SFT, summed over its tokens."""
    max_token_difference: float
    """Largest absolute difference of log-probabilities at any token, nats."""
    judged: Mapping[JudgeRole, list[float]]
    """Scores of each judge that is followed, (N,)."""
    from_last: Divergence | None = None
    """Divergence from the last round's policy; None in the first round."""
    problem: str | None = None
    """Message about scores or log-probabilities that are NaN or infinite."""

    @property
    def ended(self) -> list[bool]:
        """(N,), True for each answer that ended by itself."""
        return [sample.finished for sample in self.samples]

    @property
    def last_difference(self) -> float | None:
        """Largest absolute difference to the last round's policy at any token, nats; None in the first round."""
        return self.from_last.max_token_difference if self.from_last else None


@dataclass(frozen=True)
class PolicyEvaluation:
    """Evaluation of the policy's answers to validation prompts against SFT's."""

    roles: Roles
    prompts: Sequence[Prompt]
    sampling: SampleConfig
    seed: int
    scorer: Scorer
    judges: Sequence[FollowedJudge]
    """The first is the gold judge (Gao et al. 2022)."""
    sft: list[Sample]
    sft_judged: Mapping[JudgeRole, list[float]]
    last_policy: Path | None = None
    """Adapter of the last round's policy; None in the first round."""

    @classmethod
    def against_sft(
        cls,
        roles: Roles,
        prompts: Sequence[Prompt],
        config: Config,
        scorer: Scorer,
        judges: Sequence[FollowedJudge] = (),
        work: Path | None = None,
        last_policy: Path | None = None,
    ) -> "PolicyEvaluation":
        """Sample SFT's answers as the role REFERENCE, from the same random streams as the policy's later.

        Rewards to normalise are measured on them, once: the measurement is kept in `work`.
        """
        prompts, seed = prompts[: config.ppo.evaluate_prompts], derive_seed(config.seed, SEED_KEY)
        sft = [group[0] for group in answer_prompts(roles, Role.REFERENCE, prompts, config.sample, seed)]
        judged = {judge.role: judge.scores(prompts, sft) for judge in judges}
        if isinstance(scorer, RewardSum):
            scorer = scorer.fitted(roles, prompts, sft, work)
        return cls(roles, prompts, config.sample, seed, scorer, judges, sft, judged, last_policy)

    @property
    def sft_ended(self) -> list[bool]:
        """(N,), True for each answer of SFT that ended by itself."""
        return [sample.finished for sample in self.sft]

    def evaluate(self, step: int, config: PpoConfig, diverged: OnNotFinite) -> tuple[PolicyAnswers, dict[str, float]]:
        """Return the policy's answers after `step` and their figures.

        Raises `diverged` if a score or a log-probability is not finite: shaping may hide it from the objective.
        """
        answers = self.answer()
        if answers.problem:
            reason = f"step {step}: on validation prompts {answers.problem}"
            raise diverged(reason, answers.batch, {"scores": answers.scored.total, "kl": answers.kl})
        return answers, self.figures(answers, config)

    def answer(self) -> PolicyAnswers:
        """Sample the policy's answers and measure them."""
        groups = answer_prompts(self.roles, Role.POLICY, self.prompts, self.sampling, self.seed)
        samples = [group[0] for group in groups]
        batch = pack_answers(self.roles, self.prompts, samples, self.sampling.max_new_tokens)
        found = divergence(self.roles, batch, self.sampling.temperature)
        scored = self.scorer.score(self.roles, batch, self.prompts, samples)
        ids = [prompt.id for prompt in self.prompts]
        answers = PolicyAnswers(
            samples=samples,
            batch=batch,
            scored=scored,
            kl=found.kl,
            max_token_difference=found.max_token_difference,
            judged={judge.role: judge.scores(self.prompts, samples) for judge in self.judges},
            from_last=self._from_last(found, batch),
            problem=found.problem(self.prompts) or not_finite(Role.REWARD, "scores", scored.total, ids),
        )
        release_if_short()
        return answers

    def _from_last(self, found: Divergence, batch: Sequences) -> Divergence | None:
        if self.last_policy is None:
            return None
        with replaced(self.roles, Role.REFERENCE, self.last_policy):
            last = score_logprobs(self.roles, Role.REFERENCE, batch, self.sampling.temperature).logprobs
        return Divergence(found.policy, last)

    def figures(self, answers: PolicyAnswers, config: PpoConfig) -> dict[str, float]:
        """Return means over the answers; `objective` is the mean of `objectives`.

        `win_rate` is by the gold judge, `second_win_rate` by the second one if another is gold.
        """
        figures = {
            "score": float(answers.scored.total.mean()),
            "kl": float(answers.kl.mean()),
            "eos_rate": sum(answers.ended) / len(answers.ended),
            "objective": float(self.objectives(answers, config).mean()),
            **answers.scored.figures(),
        }
        if answers.from_last:
            figures["kl_last"] = float(answers.from_last.kl.mean())
        for key, (role, scores) in zip(("win_rate", "second_win_rate"), answers.judged.items(), strict=False):
            figures[role] = sum(scores) / len(scores)
            figures[key] = win_rate(scores, self.sft_judged[role])
        return figures

    def objectives(self, answers: PolicyAnswers, config: PpoConfig) -> Tensor:
        """Return what PPO maximises of each answer, the shaped score less the KL penalty: (N,)."""
        finished = torch.tensor(answers.ended, device=answers.scored.total.device)
        return shape_scores(answers.scored.total, finished, config) - kl_penalty(answers.kl, config.kl_coef)

    def rows(self, answers: PolicyAnswers, count: int) -> Iterator[dict[str, Any]]:
        """Yield the answers to the first prompts, with their figures, for people to read."""
        for i, (prompt, sample) in enumerate(zip(self.prompts[:count], answers.samples, strict=False)):
            yield {
                "prompt_id": prompt.id,
                "prompt": prompt.conversation,
                "answer": sample.text,
                "finished": sample.finished,
                "score": float(answers.scored.total[i]),
                "kl": float(answers.kl[i]),
                **({} if answers.scored.spread is None else {"score_spread": float(answers.scored.spread[i])}),
                **{f"reward/{name}": float(scores[i]) for name, scores in answers.scored.parts.items()},
                **{role: scores[i] for role, scores in answers.judged.items()},
            }

    def clipping(self, answers: PolicyAnswers, clip: float | None) -> str | None:
        """Return a warning if `ppo.score_clip` makes many of SFT's answers, those at step 0, worth the same."""
        share = float((answers.scored.total.abs() > clip).float().mean()) if clip is not None else 0.0
        if share <= MOST_CLIPPED:
            return None
        return (
            f"{share:.0%} of the scores of SFT's answers are beyond ppo.score_clip ({clip:g}), which makes them equal. "
            "Set `normalize: true` for a reward with larger numbers (ppo.normalize_score for the reward model), or "
            "raise ppo.score_clip"
        )

    def log(self, run_dir: RunDir, step: int, answers: PolicyAnswers, figures: dict[str, float]) -> None:
        """Write the figures into the metrics, and answers for people to read into `watched.jsonl`."""
        for row in self.rows(answers, WATCHED_PROMPTS):
            run_dir.watched.append("ppo", step, **row)
        by_prompt = {f"eval/{role}_scores": scores for role, scores in answers.judged.items()}  # for paired tests
        run_dir.metrics.append("ppo", step, **{f"eval/{name}": value for name, value in figures.items()}, **by_prompt)


def open_followed_judges(
    config: Config, run_folder: Path, progress: Progress, stop: StopRequest
) -> list[FollowedJudge]:
    """Open the judges to follow training with, without those whose scores are not absolute."""
    found = [
        FollowedJudge(open_judge(name, config.rank, run_folder, progress, stop), role)
        for role, name in followed_judges(config).items()
    ]
    return [followed for followed in found if followed.judge.absolute]


def judge_names(judges: Sequence[FollowedJudge]) -> tuple[str | None, str | None]:
    """Return the names of the gold judge and of the second one beside it, as far as they exist."""
    first, second, *_ = [*(followed.judge.name for followed in judges), None, None]
    return first, second
