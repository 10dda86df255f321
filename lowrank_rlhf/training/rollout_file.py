"""Rollouts in files: all of one, to resume its update bit-identically, and a few answers for people to read."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from lowrank_rlhf.config.ppo import PpoConfig
from lowrank_rlhf.maths.kl import k1
from lowrank_rlhf.maths.sequences import Sequences
from lowrank_rlhf.models.base import Base
from lowrank_rlhf.models.generation import Response, text_pieces
from lowrank_rlhf.models.roles import Roles
from lowrank_rlhf.models.storage import read_tensors, write_tensors
from lowrank_rlhf.run.files import read_record, write_json_atomic
from lowrank_rlhf.run.records import Prompt, RolloutAnswer
from lowrank_rlhf.training.rollout import Rollout, reward_signal, shape_scores

_TENSORS, _REST = "rollout.safetensors", "rollout.json"
_BATCH = ("ids", "attention", "response")
KEPT_ANSWERS = 4
"""Number of a rollout's answers that are kept."""
_DIGITS = 6


def save_rollout(rollout: Rollout, folder: Path) -> None:
    """Write tensors as safetensors and the rest as JSON, without the states of the shared lower layers."""
    tensors = {name: getattr(rollout.batch, name) for name in _BATCH} | rollout.tensors()
    write_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / _TENSORS)
    responses = [[list(response.tokens), response.finished] for response in rollout.responses]
    rest = {"schema": 1, "cut": rollout.cut, "responses": responses, "figures": rollout.figures}
    write_json_atomic(folder / _REST, rest)


def load_rollout(roles: Roles, folder: Path) -> Rollout | None:
    """Load a rollout saved by `save_rollout`; None if not found. Raises `UserError` if its tensors cannot be read."""
    rest = read_record(folder / _REST)
    if rest is None:
        return None
    tensors = {name: tensor.to(roles.base.device) for name, tensor in read_tensors(folder / _TENSORS).items()}
    # Versions before the baseline was saved read no value with it.
    tensors.setdefault("baseline", torch.zeros_like(tensors["scores"]))
    ids, attention, response = (tensors[name] for name in _BATCH)
    return Rollout(
        batch=roles.with_lower_states(Sequences(ids, attention, response)),  # the same states: no role trains these
        cut=rest["cut"],
        responses=[Response(tuple(tokens), finished) for tokens, finished in rest["responses"]],
        figures=rest["figures"],
        **{name: tensor for name, tensor in tensors.items() if name not in _BATCH},
    )


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

    def decode(ids: list[int]) -> str:
        return str(base.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    for i, prompt in enumerate(prompts[:KEPT_ANSWERS]):
        own = rollout.responses[i]
        yield RolloutAnswer(
            prompt_id=prompt.id,
            prompt=prompt.conversation,
            finished=own.finished,
            score=_rounded(float(rollout.scores[i])),
            pieces=tuple(text_pieces(own.tokens, decode)),
            **{name: tuple(map(_rounded, found[i, response[i]].tolist())) for name, found in figures.items()},
        )


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
