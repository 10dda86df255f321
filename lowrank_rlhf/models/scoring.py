"""Score whole batches as a role without gradients, in micro-batches that the processes share."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lowrank_rlhf.errors import ModelNotFinite
from lowrank_rlhf.maths.masking import pool
from lowrank_rlhf.maths.sequences import Sequences, micro_batches
from lowrank_rlhf.models.logprobs import TokenLogprobs
from lowrank_rlhf.models.roles import Role, Roles

_NAMES = {
    Role.POLICY: "policy",
    Role.REFERENCE: "reference",
    Role.REWARD: "reward model",
    Role.CRITIC: "critic",
}
"""Roles in messages."""
_SHOWN = 3
"""Number of rows that a message names."""


class Scored(NamedTuple):
    """Scores of B responses."""

    total: Tensor
    """(B,), what the policy is trained on before clipping and `missing_eos`."""
    parts: Mapping[str, Tensor]
    """(B,) of each reward in the sum by its name; empty if the reward model is all there is."""
    spread: Tensor | None = None
    """(B,), standard deviation of the reward model's members; None with one."""

    def figures(self) -> dict[str, float]:
        """Return the mean of each part, and of the spread."""
        found = {f"reward/{name}": float(scores.mean()) for name, scores in self.parts.items()}
        return found if self.spread is None else found | {"score_spread": float(self.spread.mean())}


def not_finite(role: Role, what: str, values: Tensor, prompts: Sequence[str]) -> str | None:
    """Return a message about the answers for which a role computed a NaN or an infinity; None if there are none.

    `values` are (N,) or (N, T), `prompts` the ids of the N answers' prompts.
    """
    wrong = (~values.isfinite()).flatten(1).any(-1) if values.dim() > 1 else ~values.isfinite()  # (N,)
    if not wrong.any():
        return None
    ids = list(dict.fromkeys(prompt for prompt, bad in zip(prompts, wrong.tolist(), strict=True) if bad))
    listed = ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
    return (
        f"the {_NAMES[role]}'s {what} of {int(wrong.sum())} of {len(prompts)} answers are NaN or infinite "
        f"(prompts {listed})"
    )


def require_finite(role: Role, what: str, values: Tensor, prompts: Sequence[str]) -> None:
    """Raise `ModelNotFinite` with the message of `not_finite`, if there is one."""
    if problem := not_finite(role, what, values, prompts):
        raise model_not_finite(problem)


def model_not_finite(problem: str) -> ModelNotFinite:
    """Return the error for a message of `not_finite`."""
    return ModelNotFinite(
        f"{problem}. Set model.compute_dtype=float32, or check the weights of the model and of its adapters"
    )


def score_tokens(roles: Roles, role: Role, batch: Sequences) -> Tensor:
    """Return the role's head output at every position: (B, T) float32, or (B, T, M) of M > 1 members; 0 on padding."""

    def compute(rows: Sequences) -> tuple[Tensor, ...]:
        scores = roles.scores(rows)
        return scores.unbind(-1) if scores.dim() > 2 else (scores,)

    outputs = _forward(roles, role, batch, compute, roles.heads[role].out_features)
    scores = [torch.where(batch.attention, each, 0.0) for each in outputs]
    return torch.stack(scores, -1) if len(scores) > 1 else scores[0]


def score_logprobs(
    roles: Roles,
    role: Role,
    batch: Sequences,
    temperature: float,
    entropy: bool = False,
    parts: Sequence[list[int]] | None = None,
) -> TokenLogprobs:
    """Return log-probabilities (and entropies) of every response token under the role: (B, T) float32.

    `parts` are the rows of each micro-batch. In bfloat16 a row's probabilities depend on the other rows of its
    micro-batch, by some percent: numbers that must be equal require the same micro-batches.
    """

    def compute(rows: Sequences) -> tuple[Tensor, ...]:
        found = roles.logprobs(rows, temperature, entropy)
        return (found.logprobs,) if found.entropy is None else (found.logprobs, found.entropy)

    logprobs, *rest = _forward(roles, role, batch, compute, 1 + entropy, parts)
    return TokenLogprobs(logprobs, rest[0] if rest else None)


def _forward(
    roles: Roles,
    role: Role,
    batch: Sequences,
    function: Callable[[Sequences], tuple[Tensor, ...]],
    count: int,
    parts: Sequence[list[int]] | None = None,
) -> list[Tensor]:
    """Return the `count` outputs of `function`, (B, T) each, collected from all micro-batches."""
    if parts is None:
        widest, limits = max(batch.lengths()), roles.base.limits
        return limits.retry(lambda: _forward(roles, role, batch, function, count, _parts(roles, batch)), widest)
    outputs = [torch.zeros(batch.ids.shape, device=batch.ids.device) for _ in range(count)]
    with roles.acting_as(role):
        for index in roles.group.shard(parts):
            for output, part in zip(outputs, function(batch.rows(index)), strict=True):
                # part is (b, t): rows of the micro-batch, cut to its longest, t <= T
                output[torch.as_tensor(index, device=output.device), : part.shape[1]] = part
    roles.group.all_reduce(outputs)  # each row is non-zero in one process: the sum is exact
    return outputs


def _parts(roles: Roles, batch: Sequences) -> list[list[int]]:
    return micro_batches(batch.lengths(), roles.base.limits.tokens, roles.group.world_size)


def score_features(roles: Roles, role: Role, batch: Sequences, pooling: str, on_rows: Callable[[int], None]) -> Tensor:
    """Return the pooled hidden states that the role's head reads, (B, h) float32; `on_rows` gets row counts."""
    features = torch.zeros(len(batch), roles.heads[role].in_features, device=batch.ids.device)
    parts, world_size = _parts(roles, batch), roles.group.world_size
    with roles.acting_as(role):
        for at_once in (parts[start : start + world_size] for start in range(0, len(parts), world_size)):
            for index in roles.group.shard(at_once):
                rows = batch.rows(index)
                found = pool(roles.hidden(rows).float(), rows.response, pooling)  # (b, t, h) -> (b, h)
                features[torch.as_tensor(index, device=features.device)] = found
            on_rows(sum(map(len, at_once)))
    roles.group.all_reduce([features])
    return features
