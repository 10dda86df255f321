"""An exported folder, loaded again by transformers alone, against the run's own output."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lowrank_rlhf.errors import ModelNotFinite
from lowrank_rlhf.maths.masking import pool
from lowrank_rlhf.maths.sequences import pack
from lowrank_rlhf.models.base import Base
from lowrank_rlhf.models.generation import Response
from lowrank_rlhf.models.logprobs import CHUNK, vocabulary_logits
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.training.rollout import RewardScale


@dataclass(frozen=True)
class Difference:
    """Difference between the exported model and the run's own, on answers that the latter sampled."""

    prompts: int
    tokens: int
    max_logprob: float
    """Largest absolute difference of a sampled token's log-probability, nats."""
    mean_logprob: float
    kl_per_token: float
    """KL(run || export), over the whole vocabulary, mean over the tokens, nats."""
    same_best: float
    """Share of positions at which both have the same most probable token."""
    computed_in: str


def role_logprobs(roles: Roles, role: Role, prompts: Sequence[Sequence[int]], answers: Sequence[Response]) -> Tensor:
    """Return the run's log-probabilities of the whole vocabulary at each answer token: (N, V) float32, on the CPU.

    Temperature is 1. Rows follow each other in the prompts' order.
    """
    base, found = roles.base, []
    with roles.acting_as(role):
        for prompt, answer in zip(prompts, answers, strict=True):
            batch = pack([prompt], [answer.tokens], base.pad, base.device)
            states = roles.hidden(batch)[0, len(prompt) - 1 : -1]
            found += [vocabulary_logits(part, base.model).log_softmax(-1).cpu() for part in states.split(CHUNK)]
    return torch.cat(found)


def difference(
    expected: Tensor, folder: Path, prompts: Sequence[Sequence[int]], answers: Sequence[Response], base: Base
) -> Difference:
    """Compare the folder, loaded by transformers alone, with the log-probabilities from `role_logprobs`."""
    model = _load(AutoModelForCausalLM, folder, base)
    gaps, kls, same, start = [], [], [], 0
    for prompt, answer in zip(prompts, answers, strict=True):
        own = expected[start : start + len(answer.tokens)]
        start += len(answer.tokens)
        ids = torch.tensor([[*prompt, *answer.tokens]], device=base.device)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        exported = logits.float().log_softmax(-1).cpu()
        _check_finite(exported, "log-probabilities", folder, base)
        targets = torch.tensor(answer.tokens)[:, None]
        gaps.append((own.gather(-1, targets) - exported.gather(-1, targets)).abs().squeeze(-1))
        kls.append((own.exp() * (own - exported)).sum(-1))
        same.append(own.argmax(-1) == exported.argmax(-1))
    gap, kl, best = (torch.cat(parts).double() for parts in (gaps, kls, same))
    return Difference(
        prompts=len(prompts),
        tokens=len(gap),
        max_logprob=float(gap.max()),
        mean_logprob=float(gap.mean()),
        kl_per_token=max(0.0, float(kl.mean())),  # rounding takes a KL of nothing below 0
        same_best=float(best.mean()),
        computed_in=str(base.compute_dtype).removeprefix("torch."),
    )


def classifier_scores(
    folder: Path, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], scale: RewardScale, base: Base
) -> Iterator[float]:
    """Yield the exported reward model's raw score of each answer, by transformers alone; members are combined."""
    model = _load(AutoModelForSequenceClassification, folder, base)
    for prompt, answer in zip(prompts, answers, strict=True):
        batch = pack([prompt], [answer], base.pad, base.device)
        with torch.no_grad():
            if scale.pooling == "last":
                scores = model(input_ids=batch.ids, use_cache=False).logits[0]  # (M,)
            else:
                states = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
                scores = pool(model.score(states).float(), batch.response, scale.pooling)[0]  # (M,)
            score = scale.ensemble.combined(scores.float()) if scale.ensemble else scores[0]
        _check_finite(score, "scores", folder, base)
        yield float(score)


def _check_finite(values: Tensor, what: str, folder: Path, base: Base) -> None:
    """Raise `ModelNotFinite` if the exported model computes NaN or infinities: no maximum would show them."""
    if not values.isfinite().all():
        raise ModelNotFinite(
            f"{folder}: the {what} of the exported model are NaN or infinite in {base.compute_dtype}. "
            "Use --dtype bfloat16"
        )


def _load(kind: Any, folder: Path, base: Base) -> Any:
    """Load in the run's compute format, so that only the rounding of the weights differs."""
    return kind.from_pretrained(folder, dtype=base.compute_dtype, device_map={"": str(base.device)}).eval()
