"""Policy against SFT on held-out prompts: what ppo watches and evaluate reports."""

from collections.abc import Sequence
from dataclasses import dataclass

from lowrank_rlhf.config.schema import PpoConfig
from lowrank_rlhf.maths.kl import k1
from lowrank_rlhf.maths.masking import masked_sum
from lowrank_rlhf.maths.sequences import Sequences, pack
from lowrank_rlhf.maths.statistics import win_rate
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.models.scoring import score_logprobs
from lowrank_rlhf.ppo.rollout import RewardScale, reward_scores
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

    def figures(self, context: Context) -> tuple[dict[str, float], list[Sample]]:
        """The policy's means on these prompts, and its answers."""
        answers = _one_each(context, Role.POLICY, self.prompts)
        scores = scored(context, self.prompts, answers, self.scale)
        kl = kl_per_answer(context, self.prompts, answers)
        figures = {"score": sum(scores) / len(scores), "kl": sum(kl) / len(kl)}
        if self.judge:
            found = judged(self.judge, self.prompts, answers)
            figures |= {"judge": sum(found) / len(found), "win_rate": win_rate(found, self.sft_judged)}
        return figures, answers


def judged(judge: Judge, prompts: Sequence[Prompt], answers: Sequence[Sample]) -> list[float]:
    """The judge's score of one answer to each prompt."""
    return [judge(prompt, [sample])[0] for prompt, sample in zip(prompts, answers, strict=True)]


def scored(context: Context, prompts: Sequence[Prompt], answers: Sequence[Sample], scale: RewardScale) -> list[float]:
    """The reward model's normalised score of one answer to each prompt."""
    batch = _packed(context, prompts, answers)
    found: list[float] = reward_scores(context.roles, batch, scale, PpoConfig(normalize_score=True)).tolist()
    return found


def kl_per_answer(context: Context, prompts: Sequence[Prompt], answers: Sequence[Sample]) -> list[float]:
    """Nats of each of the policy's answers: log policy - log SFT, summed over its tokens."""
    batch, temperature = _packed(context, prompts, answers), context.config.sample.temperature
    policy = score_logprobs(context.roles, Role.POLICY, batch, temperature).logprobs
    reference = score_logprobs(context.roles, Role.REFERENCE, batch, temperature).logprobs
    found: list[float] = masked_sum(k1(policy, reference), batch.response).tolist()
    return found


def _one_each(context: Context, role: Role, prompts: Sequence[Prompt]) -> list[Sample]:
    answers = answer(context, role, prompts, seed=context.seed("held-out answers"))
    return [samples[0] for samples in answers]


def _packed(context: Context, prompts: Sequence[Prompt], answers: Sequence[Sample]) -> Sequences:
    tokens = [sample.tokens or () for sample in answers]
    return pack(encode_prompts(context, prompts), tokens, context.base.pad, context.base.device)
