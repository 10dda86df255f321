"""Rewards of the policy: the reward model alone, or the weighted sum of `ppo.rewards`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from pydantic import BaseModel
from torch import Tensor

from lowrank_rlhf.config.rewards import MODEL, RewardTerm
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.prompts import PromptData
from lowrank_rlhf.data.right_answers import right_answers
from lowrank_rlhf.maths.sequences import Sequences
from lowrank_rlhf.models.generation import Response
from lowrank_rlhf.models.roles import Roles
from lowrank_rlhf.models.scoring import Scored
from lowrank_rlhf.preferences.rewards.loading import Reward, open_rewards
from lowrank_rlhf.run.files import SCHEMA, read_record, write_json_atomic
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.run.records import Prompt, Sample
from lowrank_rlhf.run.results import PolicyResult, UsedReward
from lowrank_rlhf.training.rollout import RewardScale

_SPREAD = "rewards.json"


class SavedSpread(BaseModel):
    """Rewards as measured at the start of the stage."""

    rewards: tuple[UsedReward, ...]


class Scorer(Protocol):
    """Scores of answers: `RewardScale` for the reward model alone, `RewardSum` for `ppo.rewards`."""

    def score(self, roles: Roles, batch: Sequences, prompts: Sequence[Prompt], samples: Sequence[Sample]) -> Scored:
        """Return the scores of a batch whose row i is `prompts[i]` with `samples[i]`."""


@dataclass(frozen=True)
class RewardSum:
    """Weighted sum of rewards, in the main process alone as far as they are no models: a function may cost money."""

    terms: Mapping[str, RewardTerm]
    rewards: Mapping[str, Reward]
    """Every reward but the reward model, by name."""
    scale: RewardScale | None
    """Of the reward model; None without one."""
    spread: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Mean and standard deviation of the normalised rewards on SFT's answers."""

    def score(self, roles: Roles, batch: Sequences, prompts: Sequence[Prompt], samples: Sequence[Sample]) -> Scored:
        """Return the sum of each row and the terms of it, before shift, scale, clip and weight. Raises `UserError`."""
        parts, spread = {}, None
        for name, term in self.terms.items():
            if term.source == MODEL and self.scale:
                parts[name], _, spread = self.scale.score(roles, batch)
            else:
                parts[name] = self._by_function(name, roles, prompts, samples)
        total = sum(map(self._weighted, parts, parts.values()), torch.zeros_like(parts[next(iter(parts))]))
        return Scored(total, parts, spread)

    def fitted(
        self, roles: Roles, prompts: Sequence[Prompt], samples: Sequence[Sample], work: Path | None = None
    ) -> "RewardSum":
        """Return the sum with the normalised rewards measured on SFT's answers; a constant one is only shifted.

        The measurement is saved in the folder `work`, and read from there on resume: a user's function or another
        number of processes may score the answers differently, and the scale must stay.
        """
        if work and (saved := read_record(work / _SPREAD, SavedSpread)):
            return self.as_trained(SavedSpread.model_validate(saved).rewards)
        spread = {}
        for name, term in self.terms.items():
            if term.normalize:
                scores = self._by_function(name, roles, prompts, samples).cpu().double()
                deviation = float(scores.std(correction=0))
                spread[name] = (float(scores.mean()), deviation if deviation > 1e-6 else 1.0)
        found = replace(self, spread=spread)
        if work and spread and roles.group.is_main:  # last: by now every process has seen that there is no file
            write_json_atomic(work / _SPREAD, {"schema": SCHEMA, **SavedSpread(rewards=found.used()).model_dump()})
        return found

    def as_trained(self, rewards: Sequence[UsedReward]) -> "RewardSum":
        """Return the sum with shift and scale of the policy's training."""
        return replace(self, spread={reward.name: (reward.mean, reward.std) for reward in rewards})

    def used(self) -> tuple[UsedReward, ...]:
        """Return the rewards as the policy is trained on them."""
        return tuple(
            UsedReward(name=name, source=term.source, weight=term.weight, mean=mean, std=deviation)
            for name, term in self.terms.items()
            for mean, deviation in [self.spread.get(name, (0.0, 1.0))]
        )

    def _weighted(self, name: str, scores: Tensor) -> Tensor:
        term, (mean, deviation) = self.terms[name], self.spread.get(name, (0.0, 1.0))
        scaled = (scores - mean) / deviation
        return term.weight * (scaled if term.clip is None else scaled.clamp(-term.clip, term.clip))

    def _by_function(self, name: str, roles: Roles, prompts: Sequence[Prompt], samples: Sequence[Sample]) -> Tensor:
        scores = torch.zeros(len(samples), device=roles.base.device)
        if roles.group.is_main:
            scores.copy_(torch.tensor(self.rewards[name].score(prompts, samples)))
        roles.group.all_reduce([scores])
        return scores


def open_scorer(
    config: Config,
    scale: RewardScale | None,
    prompts: PromptData,
    run_folder: Path,
    progress: Progress,
    stop: StopRequest,
) -> Scorer:
    """Return the rewards of `ppo.rewards`, or the reward model's `scale` if it is all there is."""
    terms = config.ppo.rewards
    if not terms:
        assert scale is not None  # noqa: S101 - without other rewards there is a reward model
        return scale
    found = open_rewards(terms, right_answers(prompts, terms), config.rank.endpoint, run_folder, progress, stop)
    return RewardSum(terms, found, scale)


def with_rewards(result: PolicyResult, scorer: Scorer) -> PolicyResult:
    """Return the result with the rewards in the sum, if there is one."""
    return result.model_copy(update={"rewards": scorer.used()}) if isinstance(scorer, RewardSum) else result


def score_responses(
    scorer: Scorer, roles: Roles, prompts: Sequence[Prompt], batch: Sequences, responses: Sequence[Response]
) -> Scored:
    """Return the scores of sampled responses, one per prompt, in the rows of the batch."""
    samples = [
        Sample(
            id=f"{prompt.id}-{row}",
            prompt_id=prompt.id,
            text=roles.base.decode(response.tokens),
            finished=response.finished,
            tokens=response.tokens,
        )
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    return scorer.score(roles, batch, prompts, samples)
