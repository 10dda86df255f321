"""Prompts with their responses as right-padded tensors, and their division into micro-batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """B rows of prompt, response and padding. Position t of every (B, T) tensor refers to the token at t."""

    ids: Tensor
    """(B, T) int64."""
    attention: Tensor
    """(B, T) bool, True on prompt and response."""
    response: Tensor
    """(B, T) bool, True on response tokens, the end-of-turn token included."""
    lower: Tensor | None = None
    """(B, T, h), precomputed output of the shared lower layers, which no role adapts; None if not computed."""

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: Sequence[int]) -> "Sequences":
        """Return the rows with these indices, cut to the longest of them."""
        picked = torch.as_tensor(index, device=self.ids.device)
        attention = self.attention[picked]
        width = int(attention.sum(-1).max())
        lower = None if self.lower is None else self.lower[picked, :width]
        return Sequences(self.ids[picked, :width], attention[:, :width], self.response[picked, :width], lower)

    def lengths(self) -> list[int]:
        """Return the number of prompt and response tokens of each row."""
        lengths: list[int] = self.attention.sum(-1).tolist()
        return lengths


def pack(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu"
) -> Sequences:
    """Pack token ids of B prompts and B non-empty responses into `Sequences`, padded on the right."""
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    attention = torch.zeros(len(rows), width, dtype=torch.bool)
    response_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        attention[i, : len(row)] = True
        response_mask[i, len(prompts[i]) : len(row)] = True
    return Sequences(ids.to(device), attention.to(device), response_mask.to(device))


def micro_batches(lengths: Sequence[int], max_tokens: int, at_least: int = 1) -> list[list[int]]:
    """Group row indices into at most `max_tokens` padded tokens (at least one row) each, longest rows first.

    Sorting by length keeps the padding small; the first group is the largest, so memory peaks at the beginning. There
    are at least `at_least` groups if there are as many rows.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    most = max(1, len(lengths) // at_least)
    groups: list[list[int]] = []
    for row in order:
        if groups and len(groups[-1]) < most and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def cut_minibatches(
    lengths: Sequence[int], minibatches: int, max_tokens: int, at_least: int = 1
) -> list[list[list[int]]]:
    """Return the micro-batches of each minibatch, which are equal parts of consecutive rows.

    `at_least` is the minimum number of micro-batches of each, as in `micro_batches`.
    """
    size = len(lengths) // minibatches
    starts = range(0, size * minibatches, size)
    return [
        [[start + row for row in part] for part in micro_batches(lengths[start : start + size], max_tokens, at_least)]
        for start in starts
    ]
