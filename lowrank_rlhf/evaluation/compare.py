"""Policy against SFT on held-out prompts: what ppo watches and evaluate reports."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowrank_rlhf.config.ppo import PpoConfig
from lowrank_rlhf.evaluation.run_judges import followed_judge, judge_all, open_judge
from lowrank_rlhf.evaluation.sampling import answer
from lowrank_rlhf.maths.kl import k1
from lowrank_rlhf.maths.masking import masked_sum
from lowrank_rlhf.maths.sequences import Sequences, pack
from lowrank_rlhf.maths.statistics import win_rate
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.scoring import score_logprobs
from lowrank_rlhf.preferences.judges.loading import Judge
from lowrank_rlhf.run.progress import Bar
from lowrank_rlhf.run.records import Prompt, Sample
from lowrank_rlhf.session import Session
from lowrank_rlhf.training.prompts import encode_prompts, max_prompt_tokens
from lowrank_rlhf.training.rollout import RewardScale, reward_scores, shape_scores


@dataclass(frozen=True)
class Contest:
    """Held-out prompts, SFT's answers to them, and the judge to follow PPO with."""

    prompts: Sequence[Prompt]
    scale: RewardScale
    sft: list[Sample]
    judge: Judge | None
    """None where the reward model is the only one to ask: there is no program that judges, or it costs requests."""
    sft_judged: list[float]
    figure: str = "judge"
    """What the judge's mean score is called among the figures."""

    @classmethod
    def against_sft(
        cls,
        session: Session,
        most: int | None,
        scale: RewardScale,
        judge: Judge | None = None,
        bar: Bar | None = None,
        figure: str = "judge",
    ) -> "Contest":
        """SFT's answers to the first held-out prompts, from a seed that the policy's answers share.

        A judge whose scores are not absolute is left out: nothing that PPO decides needs it, evaluate asks it once.
        """
        prompts = session.prompts[1][:most]
        follows = judge if judge and judge.absolute else None
        sft = _one_each(session, Role.REFERENCE, prompts, bar)
        return cls(prompts, scale, sft, follows, _each_alone(follows, prompts, sft) if follows else [], figure)

    def meet(self, session: Session, bar: Bar | None = None) -> "Answers":
        """The policy's answers to these prompts, and what reward model and reference make of them."""
        samples = _one_each(session, Role.POLICY, self.prompts, bar)
        batch = _packed(session, self.prompts, samples)
        temperature = session.config.sample.temperature
        policy = score_logprobs(session.roles, Role.POLICY, batch, temperature).logprobs
        reference = score_logprobs(session.roles, Role.REFERENCE, batch, temperature).logprobs
        per_token = k1(policy, reference)
        return Answers(
            samples=samples,
            batch=batch,
            scores=reward_scores(session.roles, batch, self.scale),
            kl=masked_sum(per_token, batch.response),
            apart=float(per_token.abs().max()),
            judged=_each_alone(self.judge, self.prompts, samples) if self.judge else [],
        )

    def figures(self, answers: "Answers", config: PpoConfig) -> dict[str, float]:
        """Means of the policy's answers; `objective` is what PPO maximises, the shaped score less the KL penalty."""
        finished = torch.tensor([sample.finished for sample in answers.samples], device=answers.scores.device)
        shaped = shape_scores(answers.scores, finished, config)
        figures = {
            "score": float(answers.scores.mean()),
            "kl": float(answers.kl.mean()),
            "eos_rate": float(finished.float().mean()),
            "objective": float((shaped - config.kl_coef * answers.kl).mean()),
        }
        if answers.judged:
            figures[self.figure] = sum(answers.judged) / len(answers.judged)
            figures["win_rate"] = win_rate(answers.judged, self.sft_judged)
        return figures

    def rows(self, answers: "Answers", most: int) -> Iterator[dict[str, Any]]:
        """The answers to the first prompts with what was found about each, to be read by people."""
        for i, (prompt, sample) in enumerate(zip(self.prompts[:most], answers.samples, strict=False)):
            judged = {self.figure: answers.judged[i]} if answers.judged else {}
            yield {
                "prompt_id": prompt.id,
                "prompt": prompt.conversation,
                "answer": sample.text,
                "finished": sample.finished,
                "score": float(answers.scores[i]),
                "kl": float(answers.kl[i]),
                **judged,
            }


@dataclass(frozen=True)
class Answers:
    """One answer of the policy to each held-out prompt."""

    samples: list[Sample]
    batch: Sequences
    """The same with their prompts."""
    scores: Tensor
    """(N,), the reward model's, 0 on average over SFT's answers."""
    kl: Tensor
    """(N,), nats of each answer: log policy - log SFT, summed over its tokens."""
    apart: float
    """The largest difference at any token, which cannot cancel as in a sum: nats."""
    judged: list[float]
    """The judge's score of each; none where no judge follows."""


def ranking_judge(session: Session) -> Judge | None:
    """The judge that ranked the answers; None where a data set or people did."""
    config = session.config.rank
    return open_judge(session, config.judge) if config.source == "judge" else None


def gold_judge(session: Session) -> tuple[str, Judge | None]:
    """The judge to follow PPO with, and what its score is called among the figures: `judge` is the one that ranked."""
    name = followed_judge(session.config)
    figure = "judge" if session.config.rank.source == "judge" else "second_judge"
    return figure, open_judge(session, name) if name else None


def verdicts(
    session: Session, key: str, judge: Judge, prompts: Sequence[Prompt], sft: Sequence[Sample], policy: Sequence[Sample]
) -> dict[str, list[Any]]:
    """What a judge makes of the two answers to each prompt, as columns of eval.jsonl.

    `{key}_sft` and `{key}_policy` hold scores; where these compare within one call only, `{key}_prefers` says `sft`,
    `policy` or `tie` instead.
    """
    if judge.absolute:
        return {f"{key}_sft": _each_alone(judge, prompts, sft), f"{key}_policy": _each_alone(judge, prompts, policy)}
    groups = [(prompt, pair) for prompt, *pair in zip(prompts, sft, policy, strict=True)]
    scores = judge_all(session, judge, "judge", groups)
    prefers = ["tie" if ours == theirs else "policy" if ours > theirs else "sft" for theirs, ours in scores]
    return {f"{key}_prefers": prefers}


def _each_alone(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Sample]) -> list[float]:
    """An absolute judge's score of one answer to each prompt."""
    return [judge.score(prompt, [sample])[0] for prompt, sample in zip(prompts, answers, strict=True)]


def scored(session: Session, prompts: Sequence[Prompt], answers: Sequence[Sample], scale: RewardScale) -> list[float]:
    """The reward model's normalised score of one answer to each prompt."""
    found: list[float] = reward_scores(session.roles, _packed(session, prompts, answers), scale).tolist()
    return found


def _one_each(session: Session, role: Role, prompts: Sequence[Prompt], bar: Bar | None) -> list[Sample]:
    answers = answer(session, role, prompts, seed=session.seed("held-out answers"), bar=bar)
    return [samples[0] for samples in answers]


def _packed(session: Session, prompts: Sequence[Prompt], answers: Sequence[Sample]) -> Sequences:
    tokens = [sample.tokens or () for sample in answers]
    encoded = encode_prompts(session.base, prompts, max_prompt_tokens(session.config))
    batch = pack(encoded, tokens, session.base.pad, session.base.device)
    return session.roles.with_trunk(batch)
