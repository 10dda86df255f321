"""Lengths of prompts and answers in tokens or words, and rows that do not fit."""

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
    """Unit of lengths, with functions that count it."""

    @property
    def unit(self) -> str:
        """Name of the unit, such as `tokens of SmolLM2`."""

    def prompts(self, prompts: Sequence[Turns]) -> list[int]:
        """Return the length of each prompt as the model reads it."""

    def answers(self, texts: Sequence[str]) -> list[int]:
        """Return the length of each answer as the model reads it."""


class Words:
    """Lengths in words, used without a tokenizer."""

    unit = "words"

    def prompts(self, prompts: Sequence[Turns]) -> list[int]:
        """Return the number of words in all turns of each prompt."""
        return [sum(len(_WORD.findall(turn.content)) for turn in prompt) for prompt in prompts]

    def answers(self, texts: Sequence[str]) -> list[int]:
        """Return the number of words of each text."""
        return [len(_WORD.findall(text)) for text in texts]


@dataclass(frozen=True)
class Bin:
    """Number of lengths from low to high, both included; the last bin has no upper end."""

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
    """Number of rows longer than `max_length`: prompts without room for an answer, and rows with the longest answer."""

    max_length: int
    prompts: int
    with_answer: int


def lengths_of(loaded: Loaded, measure: Measure, max_length: int) -> tuple[Lengths | None, Lengths | None, OverContext]:
    """Return lengths of prompts (one per row), of all responses and answers, and the rows over `max_length`."""
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
    """Return bins of one round width up to about the 95th percentile: outliers would flatten the rest."""
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
