"""The simulated annotator: prefers kind replies on the subject, by sentence embeddings instead of word lists."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_rlhf.maths.text import words
from lowrank_rlhf.run.records import Prompt, Sample

Vectors = NDArray[Any]
Embed = Callable[[Sequence[str]], Vectors]
"""Embeddings of N texts, (N, d), of unit length."""

TASTE_ROWS = 200
"""Rows of `replies.jsonl` that the taste is fitted to."""
TASTE_L2 = 1.0
_NEWTON_STEPS = 50
MOST_SIMILAR = 0.7
"""Similarity to the prompt from which more earns nothing: a copy of the prompt is not an answer."""
FEWEST_WORDS, MOST_WORDS = 10, 36
COPIED_WORDS, COPIED_SHARE = 4, 0.6


class VoicedReplies(NamedTuple):
    """A prompt with a hand-written reply in each of three voices."""

    prompt: str
    kind: str
    factual: str
    blunt: str


@cache
def read_replies() -> tuple[VoicedReplies, ...]:
    """Return the hand-written replies."""
    lines = (Path(__file__).parent / "replies.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(VoicedReplies(**json.loads(line)) for line in lines)


@dataclass(frozen=True)
class SimulatedAnnotator:
    """Imitates a person who prefers kind replies on the subject.

        score = 2 similarity to the prompt (at most 0.7) + 2 similarity to a kind reply + 1.5 kindness
                - 2 max(0, repeats - 0.05) - copied - 0.5 unfinished - 0.05 words below 10 - 0.04 words above 36

    - similarity: cosine of the sentence embeddings. The kind reply is the hand-written one to this prompt; where none
      exists, the prompt takes its place.
    - kindness: sigmoid of a linear function of the answer's embedding, fitted by logistic regression to hand-written
      replies in a kind voice against a factual and a blunt one.
    - repeats: share of the answer's word pairs that occurred in it before.
    - copied: 1 if the answer repeats a run of 4 or more words that is over 60 % of the prompt.
    - unfinished: 1 unless the model ended the answer itself with one of . ! ?

    Not from a paper. It holds no list of words, and depends on the whole sentence.
    """

    embed: Embed

    def __call__(self, prompt: Prompt, samples: Sequence[Sample]) -> list[float]:
        """Return one score for each answer, about 0 to 5."""
        asked = prompt.messages[-1].content.strip()
        target, question = self.embed([self._kind_replies.get(asked, asked), asked])  # (d,) each
        vectors = self.embed([sample.text for sample in samples])  # (K, d)
        direction, offset = self._taste
        kindness = 1 / (1 + np.exp(-(vectors @ direction + offset)))  # (K,)
        similar = 2 * np.minimum(vectors @ question, MOST_SIMILAR) + 2 * (vectors @ target)  # (K,)
        found: Vectors = similar + 1.5 * kindness - [_faults(asked, sample) for sample in samples]
        return [float(score) for score in found]

    @cached_property
    def _kind_replies(self) -> dict[str, str]:
        return {reply.prompt: reply.kind for reply in read_replies()}

    @cached_property
    def _taste(self) -> tuple[Vectors, float]:
        """Direction (d,) and offset of kindness."""
        rows = read_replies()[:TASTE_ROWS]
        voices = [self.embed([getattr(row, voice) for row in rows]) for voice in ("kind", "factual", "blunt")]
        is_kind = np.repeat([1.0, 0.0, 0.0], len(rows))
        weights = logistic_regression(np.concatenate(voices), is_kind, TASTE_L2)
        return weights[:-1], float(weights[-1])


def logistic_regression(features: Vectors, labels: Vectors, l2: float) -> Vectors:
    """Minimise sum log(1 + exp(-y(v.z + b))) + l2/2 |v|^2 over v and b, for labels 0 and 1, by Newton's method.

    Args:
        features: z, (N, d).
        labels: (N,), 1 where y is +1 and 0 where y is -1.
        l2: ridge penalty of v; the offset b has none.

    Returns (d + 1,): v, then b.
    """
    design = np.column_stack([features, np.ones(len(features))])  # (N, d + 1)
    penalty = np.diag([*np.full(features.shape[1], l2), 0.0])
    weights = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        chance = 1 / (1 + np.exp(-design @ weights))  # (N,)
        gradient = design.T @ (chance - labels) + penalty @ weights
        step = np.linalg.solve((design.T * (chance * (1 - chance))) @ design + penalty, gradient)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    return weights


def _faults(asked: str, sample: Sample) -> float:
    """Return the points that an answer loses for its form."""
    answer, prompt = words(sample.text), words(asked)
    pairs = list(pairwise(answer))
    repeats = 1 - len(set(pairs)) / len(pairs) if pairs else 1.0
    run = SequenceMatcher(None, prompt, answer, autojunk=False).find_longest_match().size
    copied = run >= COPIED_WORDS and run > COPIED_SHARE * len(prompt)
    unfinished = not (sample.finished and sample.text.rstrip().endswith((".", "!", "?")))
    return (
        2 * max(0.0, repeats - 0.05)
        + copied
        + 0.5 * unfinished
        + 0.05 * max(0, FEWEST_WORDS - len(answer))
        + 0.04 * max(0, len(answer) - MOST_WORDS)
    )
