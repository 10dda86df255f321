"""How long prompts and answers are, in tokens or in words, and what does not fit."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lowrank_rlhf.data.examples import Example
from lowrank_rlhf.data.loading import Loaded
from lowrank_rlhf.data.turns import Turns
from lowrank_rlhf.maths.text import EAST_ASIAN

_BINS = 8
_WORD = re.compile(rf"[{EAST_ASIAN}]|[^\s{EAST_ASIAN}]+")


class Measure(Protocol):
    """What lengths are counted in."""

    @property
    def unit(self) -> str:
        """Such as `tokens of SmolLM2`."""

    def prompts(self, prompts: Sequence[Turns]) -> list[int]:
        """Length of each prompt as the model reads it."""

    def answers(self, texts: Sequence[str]) -> list[int]:
        """Length of each answer as the model reads it."""


class Words:
    """Lengths in words, for want of a tokenizer."""

    unit = "words"

    def prompts(self, prompts: Sequence[Turns]) -> list[int]:
        """Words of all turns."""
        return [sum(len(_WORD.findall(turn.content)) for turn in prompt) for prompt in prompts]

    def answers(self, texts: Sequence[str]) -> list[int]:
        """Words of each text."""
        return [len(_WORD.findall(text)) for text in texts]


@dataclass(frozen=True)
class Bin:
    """How many lengths lie in low to high, both included; the last bin has no high end."""

    low: int
    high: int | None
    count: int


@dataclass(frozen=True)
class Lengths:
    """Summary of a list of lengths."""

    count: int
    smallest: int
    median: float
    p95: float
    largest: int
    bins: list[Bin]


@dataclass(frozen=True)
class OverContext:
    """Rows that do not fit into `max_length`; with no room for an answer, or with their longest answer."""

    max_length: int
    prompts: int
    with_answer: int


def lengths_of(loaded: Loaded, measure: Measure, max_length: int) -> tuple[Lengths | None, Lengths | None, OverContext]:
    """Lengths of the prompts, one per row, and of all responses and answers; and what exceeds `max_length`."""
    examples = [example for _, example in loaded.located]
    prompts = measure.prompts([example.prompt for example in examples])
    texts = [_texts(example) for example in examples]
    flat = measure.answers([text for group in texts for text in group])
    ends = np.cumsum([len(group) for group in texts]).tolist()
    longest = [max(flat[end - len(group) : end], default=0) for end, group in zip(ends, texts, strict=True)]
    over = OverContext(
        max_length,
        prompts=sum(prompt >= max_length for prompt in prompts),
        with_answer=sum(prompt + answer > max_length for prompt, answer in zip(prompts, longest, strict=True)),
    )
    return _summary(prompts), _summary(flat), over


def _texts(example: Example) -> list[str]:
    return [example.response] if example.response is not None else list(example.answers)


def _summary(values: Sequence[int]) -> Lengths | None:
    if not values:
        return None
    return Lengths(
        count=len(values),
        smallest=min(values),
        median=float(np.median(values)),
        p95=float(np.percentile(values, 95)),
        largest=max(values),
        bins=_histogram(values),
    )


def _histogram(values: Sequence[int]) -> list[Bin]:
    """Bins of one round width up to about the 95th percentile, so that a few outliers do not flatten the rest."""
    wanted = max(1.0, (float(np.percentile(values, 95)) - min(values)) / _BINS)
    scale = 10 ** int(np.floor(np.log10(wanted)))
    width = next(step * scale for step in (1, 2, 5, 10) if step * scale >= wanted)
    start = min(values) // width * width
    places = [min((value - start) // width, _BINS) for value in values]
    counts = np.bincount(places)
    return [
        Bin(start + i * width, None if i == _BINS else start + (i + 1) * width - 1, int(count))
        for i, count in enumerate(counts)
    ]
