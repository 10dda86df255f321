"""Policy against SFT on held-out prompts: what ppo watches and evaluate reports."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_rlhf.maths.kl import k1
from lowrank_rlhf.maths.masking import masked_sum
from lowrank_rlhf.maths.sequences import Sequences, pack
from lowrank_rlhf.maths.statistics import win_rate
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.scoring import score_logprobs
from lowrank_rlhf.ppo.rollout import RewardScale, reward_scores, shape_scores
from lowrank_rlhf.ranking.judges import Judge, load_judge
from lowrank_rlhf.records import Prompt, Sample
from lowrank_rlhf.stages.answers import answer, encode_prompts
from lowrank_rlhf.stages.context import Context


@dataclass(frozen=True)
class Contest:
    """Held-out prompts, SFT's answers to them, and their judge."""

    prompts: Sequence[Prompt]
    scale: RewardScale
    judge: Judge | None
    """None where no program ranked the answers: then the reward model is the only one to ask."""
    sft: list[Sample]
    sft_judged: list[float]

    @classmethod
    def against_sft(cls, context: Context, most: int | None, scale: RewardScale) -> "Contest":
        """SFT's answers to the first held-out prompts, from a seed that the policy's answers share."""
        prompts = context.prompts[1][:most]
        config = context.config.rank
        judge = load_judge(config.judge) if config.source == "judge" else None
        sft = _one_each(context, Role.REFERENCE, prompts)
        return cls(prompts, scale, judge, sft, judged(judge, prompts, sft) if judge else [])

    def meet(self, context: Context) -> "Answers":
        """The policy's answers to these prompts, and what reward model, reference and judge make of them."""
        samples = _one_each(context, Role.POLICY, self.prompts)
        batch = _packed(context, self.prompts, samples)
        temperature = context.config.sample.temperature
        policy = score_logprobs(context.roles, Role.POLICY, batch, temperature).logprobs
        reference = score_logprobs(context.roles, Role.REFERENCE, batch, temperature).logprobs
        return Answers(
            samples=samples,
            scores=reward_scores(context.roles, batch, self.scale),
            kl=masked_sum(k1(policy, reference), batch.response),
            judged=judged(self.judge, self.prompts, samples) if self.judge else [],
        )

    def figures(self, context: Context) -> dict[str, float]:
        """Means of the policy's answers; `objective` is what PPO maximises, the shaped score less the KL penalty."""
        config, answers = context.config.ppo, self.meet(context)
        finished = torch.tensor([sample.finished for sample in answers.samples], device=answers.scores.device)
        shaped = shape_scores(answers.scores, finished, config)
        figures = {
            "score": float(answers.scores.mean()),
            "kl": float(answers.kl.mean()),
            "objective": float((shaped - config.kl_coef * answers.kl).mean()),
        }
        if self.judge:
            figures["judge"] = sum(answers.judged) / len(answers.judged)
            figures["win_rate"] = win_rate(answers.judged, self.sft_judged)
        return figures


@dataclass(frozen=True)
class Answers:
    """One answer of the policy to each held-out prompt."""

    samples: list[Sample]
    scores: Tensor
    """(N,), the reward model's, 0 on average over SFT's answers."""
    kl: Tensor
    """(N,), nats of each answer: log policy - log SFT, summed over its tokens."""
    judged: list[float]


def judged(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Sample]) -> list[float]:
    """The judge's score of one answer to each prompt."""
    return [judge(prompt, [sample])[0] for prompt, sample in zip(prompts, answers, strict=True)]


def scored(context: Context, prompts: Sequence[Prompt], answers: Sequence[Sample], scale: RewardScale) -> list[float]:
    """The reward model's normalised score of one answer to each prompt."""
    found: list[float] = reward_scores(context.roles, _packed(context, prompts, answers), scale).tolist()
    return found


def _one_each(context: Context, role: Role, prompts: Sequence[Prompt]) -> list[Sample]:
    answers = answer(context, role, prompts, seed=context.seed("held-out answers"))
    return [samples[0] for samples in answers]


def _packed(context: Context, prompts: Sequence[Prompt], answers: Sequence[Sample]) -> Sequences:
    tokens = [sample.tokens or () for sample in answers]
    batch = pack(encode_prompts(context, prompts), tokens, context.base.pad, context.base.device)
    return context.roles.with_trunk(batch)
