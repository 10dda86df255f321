"""Prompts with their responses as right-padded tensors, and their division into micro-batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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
    counts: tuple[tuple[int, int], ...] | None = None
    """Number of tokens and of response tokens of each row; None to read them from the device when needed."""

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: Sequence[int]) -> "Sequences":
        """Return the rows with these indices, cut to the longest of them."""
        picked = torch.as_tensor(index, device=self.ids.device)
        counts = tuple(self.host_counts[row] for row in index)
        width = max(length for length, _ in counts)
        lower = None if self.lower is None else self.lower[picked, :width]
        ids, attention = self.ids[picked, :width], self.attention[picked, :width]
        return Sequences(ids, attention, self.response[picked, :width], lower, counts)

    @cached_property
    def host_counts(self) -> tuple[tuple[int, int], ...]:
        """`counts`, read from the device once if they are None: each read waits for the device."""
        if self.counts is not None:
            return self.counts
        counts = torch.stack([self.attention.sum(-1), self.response.sum(-1)], -1)  # (B, 2)
        return tuple((length, responses) for length, responses in counts.tolist())

    def lengths(self) -> list[int]:
        """Return the number of prompt and response tokens of each row."""
        return [length for length, _ in self.host_counts]

    def response_tokens(self) -> int:
        """Return the number of response tokens of all rows, N."""
        return sum(responses for _, responses in self.host_counts)

    def response_positions(self) -> tuple[Tensor, Tensor]:
        """Return the rows and positions of all response tokens, row by row: (N,), (N,).

        Indexing with the mask itself would wait for the device to count N.
        """
        rows, positions = self.response.nonzero_static(size=self.response_tokens()).unbind(-1)
        return rows, positions


def pack(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu"
) -> Sequences:
    """Pack token ids of B prompts and B responses into `Sequences`, padded on the right.

    Raises `ValueError` for an empty response.
    """
    if not all(map(len, responses)):
        raise ValueError("a row has no response token")
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    attention = torch.zeros(len(rows), width, dtype=torch.bool)
    response_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        attention[i, : len(row)] = True
        response_mask[i, len(prompts[i]) : len(row)] = True
    counts = tuple((len(row), len(response)) for row, response in zip(rows, responses, strict=True))
    return Sequences(ids.to(device), attention.to(device), response_mask.to(device), counts=counts)


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
