"""Pooled hidden states of answers, with the answers to one prompt in one row: the prompt is read once for all of them.

A row is the prompt, then the answers. Each answer's tokens attend to the prompt and to their own answer, and their
positions continue the prompt's, so that the states are those of separate rows up to rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowrank_rlhf.maths.masking import pool
from lowrank_rlhf.maths.sequences import micro_batches, pack
from lowrank_rlhf.models.batch_limits import is_out_of_memory
from lowrank_rlhf.models.decoding import has_plain_attention
from lowrank_rlhf.models.layers.kv_cache import growing_cache
from lowrank_rlhf.models.layers.partial_forward import partial_forward
from lowrank_rlhf.models.roles import Role, Roles
from lowrank_rlhf.models.scoring import score_features

LONGEST_ROW = 256
"""Most tokens of a row with several answers: in longer ones the answers' scores for each other's tokens, which are
masked, cost more than the prompt."""
_TOLERANCE = 0.05
"""Largest difference from separate rows, as a share of the largest number: bfloat16 alone gives 0.01."""


@dataclass(frozen=True)
class SharedRow:
    """One prompt with some of its answers."""

    prompt: Sequence[int]
    answers: Sequence[Sequence[int]]
    index: Sequence[int]
    """Indices of the answers among all answers."""

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.answers))

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield where each answer begins and ends in the row."""
        end = len(self.prompt)
        for answer in self.answers:
            yield end, end + len(answer)
            end += len(answer)


def shared_rows(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]], longest: int = LONGEST_ROW
) -> list[SharedRow]:
    """Put several answers to a prompt into one row, in their order, while it has at most `longest` tokens."""
    rows: list[SharedRow] = []
    count = 0
    for prompt, own in zip(prompts, answers, strict=True):
        start = len(rows)
        for index, answer in enumerate(own, count):
            if len(rows) > start and len(rows[-1]) + len(answer) <= longest:
                last = rows.pop()
                rows.append(SharedRow(prompt, [*last.answers, answer], [*last.index, index]))
            else:
                rows.append(SharedRow(prompt, [answer], [index]))
        count += len(own)
    return rows


def pack_shared(rows: Sequence[SharedRow], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pack B rows, padded on the right: token ids (B, T), positions (B, T), and the mask (B, 1, T, T).

    The mask is True where a token (third dimension) attends to another (fourth); padding attends to itself alone.
    """
    width = max(map(len, rows))
    ids, positions = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    part = torch.full((len(rows), width), -1)  # 0 in the prompt, k in answer k, -1 in the padding
    for i, row in enumerate(rows):
        first = len(row.prompt)
        ids[i, : len(row)] = torch.tensor([*row.prompt, *(token for answer in row.answers for token in answer)])
        part[i, :first], positions[i, :first] = 0, torch.arange(first)
        for number, (start, end) in enumerate(row.spans(), 1):
            part[i, start:end], positions[i, start:end] = number, torch.arange(first, first + end - start)
    own, others = part[:, :, None], part[:, None, :]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    mask = causal & ((others == 0) | (others == own)) & (own >= 0) | torch.eye(width, dtype=torch.bool)
    return ids, positions, mask[:, None]


def answer_features(
    roles: Roles,
    role: Role,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    pooling: str,
    on_answers: Callable[[int], None],
) -> Tensor:
    """Return the pooled hidden states of all answers that the role's head reads, prompt by prompt: (N, h) float32.

    Several answers share a row where that is faster and the model allows it; otherwise they are read as in
    `score_features`. `on_answers` gets numbers of answers.
    """
    rows = shared_rows(prompts, answers, min(LONGEST_ROW, roles.base.limits.tokens))
    most = max(rows, key=lambda row: len(row.answers))
    agreed = len(most.answers) > 1 and _agrees(roles, role, most, pooling)
    if roles.group.sum(int(agreed)) < roles.group.world_size:  # all processes read alike
        prompt_of_each = [prompt for prompt, own in zip(prompts, answers, strict=True) for _ in own]
        batch = pack(prompt_of_each, [answer for own in answers for answer in own], roles.base.pad, roles.base.device)
        return score_features(roles, role, batch, pooling, on_answers)
    features = torch.zeros(sum(map(len, answers)), roles.heads[role].in_features, device=roles.base.device)
    world_size = roles.group.world_size
    parts = micro_batches([len(row) for row in rows], roles.base.limits.tokens, world_size)
    with roles.acting_as(role):
        for at_once in (parts[start : start + world_size] for start in range(0, len(parts), world_size)):
            for part in roles.group.shard(at_once):
                chosen = [rows[index] for index in part]
                features[[index for row in chosen for index in row.index]] = _features(roles, chosen, pooling)
            on_answers(sum(len(rows[index].answers) for part in at_once for index in part))
    roles.group.all_reduce([features])
    return features


def _features(roles: Roles, rows: Sequence[SharedRow], pooling: str) -> Tensor:
    """Return the pooled states of the rows' answers, (N, h) float32, as the acting role."""
    ids, positions, mask = (tensor.to(roles.base.device) for tensor in pack_shared(rows, roles.base.pad))
    with partial_forward(roles.decoder, 0, None, roles.head_layers):
        output = roles.decoder(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
    states = output.last_hidden_state.float()  # (B, T, h)
    found = []
    for own, row in zip(states, rows, strict=True):
        for start, end in row.spans():
            answer = own[None, start:end]  # (1, t, h)
            found.append(pool(answer, torch.ones_like(answer[..., 0], dtype=torch.bool), pooling))
    return torch.cat(found)


def _agrees(roles: Roles, role: Role, row: SharedRow, pooling: str) -> bool:
    """Compare the features of two of a row's answers with those of separate rows.

    Some models read no positions or masks of this form.
    """
    model = roles.base.model
    if roles.base.by_unsloth or not has_plain_attention(model, growing_cache(model.config)):
        return False
    row = replace(row, answers=row.answers[:2], index=row.index[:2])
    batch = pack([row.prompt] * len(row.answers), row.answers, roles.base.pad, roles.base.device)
    with roles.acting_as(role):
        states = roles.hidden(batch).float()
        expected = pool(states, batch.response, pooling)  # (K, h)
        try:
            found = _features(roles, [row], pooling)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error):
                raise
            return False
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())
