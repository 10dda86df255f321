"""Tests for a change of wording between two models' answers to the same prompts. Numpy only.

The pairs of answers are compared at equal length: both are cut to the words of the shorter one, since a longer answer
contains more of every word and repeats more of them.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from lowrank_rlhf.maths.text import EAST_ASIAN, words

_EAST_ASIAN = re.compile(f"[{EAST_ASIAN}]")


_FUNCTION_TEXT = """
    a about after all also am an and any are as at be because been before being but by can could did do does doing don't
    down during each else even every few for from further had has have having he her here hers him his how i i'd i'll
    i'm i've if in into is isn't it it's its just let like may me might more most much must my no nor not of off on once
    one only or other our ours out over own same she should so some such than that that's the their theirs them then
    there these they this those through to too under until up upon us very was we we're were what when where which while
    who whom whose why will with within without would you you'll you're you've your yours yourself
    """
_FUNCTION_WORDS = frozenset(_FUNCTION_TEXT.split())
"""English words without a meaning of their own: their shares follow grammar and style."""
_NAMED = 5
_RARE = 0.02


class FavouredWords(NamedTuple):
    """Words that the second model prefers, the strongest first."""

    words: tuple[str, ...]
    before: float
    """Share of the first model's answers that contain any of the words."""
    after: float
    p: float
    """One-sided p-value of the growth of the words that grow most, at equal length."""


class VarietyChange(NamedTuple):
    """Distinct-2 of both models at equal length, and the one-sided p-value of a fall."""

    before: float
    after: float
    p: float


def favoured_words(
    before: Sequence[str], after: Sequence[str], samples: int = 1000, seed: int = 0
) -> FavouredWords | None:
    """Return the words whose share of answers grows most from `before` to `after`, answers to the same N prompts.

    The figure under test is the mean growth, at equal length, of the five content words that grow most. The test
    exchanges the two answers of randomly chosen prompts `samples` times and chooses the five again each time, so that p
    accounts for the choice among all words. Two adjacent East Asian characters count as a word. None if nothing grows.
    Raises `ValueError` for lists of different lengths.
    """
    cut = [_equally_long(*pair) for pair in zip(before, after, strict=True)]
    changes = [(_terms(two) - _terms(one), _terms(one) - _terms(two)) for one, two in cut]
    counts = Counter(term for gained, lost in changes for term in gained | lost)
    terms = sorted(term for term, count in counts.items() if count >= max(2, _RARE * len(cut)))
    if not terms:
        return None
    gained, lost = (
        np.array([[term in change[side] for term in terms] for change in changes], dtype=np.float32) for side in (0, 1)
    )
    growth = gained - lost  # (N, V): 1 where only the second answer contains the word, -1 where only the first does
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], dtype=np.float32), (samples, len(cut)))
    found = growth.sum(axis=0)  # (V,)
    as_high = (_most(signs @ growth) >= _most(found[None])).sum()  # (S, V) -> (S,)
    order = np.argsort(-found, kind="stable")[:_NAMED]
    words_found = tuple(terms[index] for index in order if found[index] > 0)
    one, two = (
        sum(not _terms(words(text)).isdisjoint(words_found) for text in texts) / len(cut) for texts in (before, after)
    )
    return FavouredWords(words_found, one, two, (1 + int(as_high)) / (samples + 1)) if words_found else None


def variety_change(before: Sequence[str], after: Sequence[str], samples: int = 200, seed: int = 0) -> VarietyChange:
    """Return distinct-2 of both sides' answers at equal length, and the p-value of its fall.

    The test exchanges the two answers of randomly chosen prompts `samples` times: if the models are the same, all
    exchanges are equally likely. Raises `ValueError` for lists of different lengths.
    """
    cut = [_equally_long(*pair) for pair in zip(before, after, strict=True)]
    ids: dict[tuple[str, str], int] = {}
    grams = [[[ids.setdefault(gram, len(ids)) for gram in pairwise(side)] for side in pair] for pair in cut]

    def distinct(sides: np.ndarray) -> float:
        found = [gram for pair, side in zip(grams, sides, strict=True) for gram in pair[side]]
        return len(set(found)) / len(found) if found else 0.0

    first = np.zeros(len(cut), dtype=int)
    one, two = distinct(first), distinct(1 - first)
    generator, as_low = np.random.default_rng(seed), 1
    for _ in range(samples):
        exchanged = generator.integers(2, size=len(cut))
        as_low += distinct(1 - exchanged) - distinct(exchanged) <= two - one
    return VarietyChange(one, two, as_low / (samples + 1))


def _equally_long(one: str, two: str) -> tuple[list[str], list[str]]:
    first, second = words(one), words(two)
    size = min(len(first), len(second))
    return first[:size], second[:size]


def _terms(tokens: Sequence[str]) -> set[str]:
    """Return the content words of an answer; of East Asian text every two adjacent characters."""
    together = (one + two for one, two in pairwise(tokens) if _EAST_ASIAN.match(one) and _EAST_ASIAN.match(two))
    alone = (token for token in tokens if not _EAST_ASIAN.match(token) and token not in _FUNCTION_WORDS)
    return {*alone, *together}


def _most(growth: np.ndarray) -> np.ndarray:
    """Return the mean of the largest values of each row, (S, V) -> (S,)."""
    count = min(_NAMED, growth.shape[1])
    return np.partition(growth, -count, axis=1)[:, -count:].mean(axis=1)
