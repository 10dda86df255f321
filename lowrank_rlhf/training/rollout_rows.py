"""Answers of a rollout, token by token, for people to read: rows of rollouts.jsonl."""

from collections.abc import Iterator, Sequence

import torch

from lowrank_rlhf.config.ppo import PpoConfig
from lowrank_rlhf.maths.kl import k1
from lowrank_rlhf.models.base import Base
from lowrank_rlhf.models.generation import text_pieces
from lowrank_rlhf.run.records import Prompt, RolloutAnswer
from lowrank_rlhf.training.rollout import Rollout, reward_signal, shape_scores

KEPT_ANSWERS = 4
"""Number of a rollout's answers that are kept."""
_DIGITS = 6


def rollout_rows(rollout: Rollout, prompts: Sequence[Prompt], base: Base, config: PpoConfig) -> Iterator[RolloutAnswer]:
    """Yield the first answers of a rollout, with the figures that its update uses, rounded to six significant digits.

    `prompts` are those of all B responses.
    """
    response = rollout.batch.response
    finished = torch.tensor([each.finished for each in rollout.responses], device=rollout.scores.device)
    shaped = shape_scores(rollout.scores, finished, config) - rollout.baseline  # (B,)
    kl = k1(rollout.logprobs, rollout.ref_logprobs)  # (B, T)
    rewards = reward_signal(shaped, kl, response, config, rollout.figures["objective/kl_coef"])  # (B, T)
    figures = {
        "logprobs": rollout.logprobs,
        "ref_logprobs": rollout.ref_logprobs,
        "values": rollout.values,
        "advantages": rollout.advantages,
        "rewards": rewards,
    }
    for i, prompt in enumerate(prompts[:KEPT_ANSWERS]):
        own = rollout.responses[i]
        yield RolloutAnswer(
            prompt_id=prompt.id,
            prompt=prompt.conversation,
            finished=own.finished,
            score=_rounded(float(rollout.scores[i])),
            pieces=tuple(text_pieces(own.tokens, lambda ids: str(base.tokenizer.decode(ids)))),
            **{name: tuple(map(_rounded, found[i, response[i]].tolist())) for name, found in figures.items()},
        )


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
