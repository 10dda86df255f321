"""Simulated annotators: prefer kind replies on the subject, by sentence embeddings instead of word lists."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_rlhf.maths.text import is_east_asian, words
from lowrank_rlhf.preferences.judges.restatement import PERSONS_EN, PERSONS_ZH, restatement
from lowrank_rlhf.run.files import read_lines
from lowrank_rlhf.run.records import Prompt, Sample

Vectors = NDArray[Any]
Embed = Callable[[Sequence[str]], Vectors]
"""Embeddings of N texts, (N, d), of unit length."""

_NEWTON_STEPS = 50


class Language(NamedTuple):
    """Numbers of an annotator that depend on its language, and the file of its hand-written replies."""

    replies: str
    taste_rows: int
    """Rows of `replies` that the taste is fitted to."""
    taste_l2: float
    most_similar: float
    """Similarity to the prompt from which more earns nothing: a copy of the prompt is not an answer."""
    persons: Mapping[str, str]
    """Words of the first person, and those of the second that a reply says in their place."""
    fewest_words: int
    most_words: int
    ends: str
    east_asian: bool
    """True if each word of another script is a fault."""


ENGLISH = Language("replies.jsonl", 200, 1.0, 0.7, PERSONS_EN, 10, 36, ends=".!?", east_asian=False)
CHINESE = Language("replies_zh.jsonl", 200, 0.1, 0.45, PERSONS_ZH, 12, 42, ends="。！？", east_asian=True)


class VoicedReplies(NamedTuple):
    """A prompt with a hand-written reply in each of three voices."""

    prompt: str
    kind: str
    factual: str
    blunt: str

    @property
    def voices(self) -> tuple[str, str, str]:
        """Return the three replies."""
        return self.kind, self.factual, self.blunt


def read_replies(language: Language = ENGLISH) -> tuple[VoicedReplies, ...]:
    """Return the hand-written replies."""
    return _read(language.replies)


@cache
def _read(file: str) -> tuple[VoicedReplies, ...]:
    return tuple(VoicedReplies(**json.loads(line)) for line in read_lines(Path(__file__).parent / file) if line)


@dataclass(frozen=True)
class SimulatedAnnotator:
    """Imitates a person who prefers kind replies on the subject.

        score = 4 similarity to a kind reply + 1.5 kindness + 2 restatement - unturned
                - 2 max(0, repeats - 0.05) - 0.5 unfinished - 0.05 words below 10 - 0.04 words above 36

    - similarity: cosine of the sentence embeddings. The kind reply is the hand-written one to this prompt; where none
      exists, the prompt takes its place, and the similarity counts up to 0.7.
    - kindness: sigmoid of a linear function of the answer's embedding, fitted by logistic regression to hand-written
      replies in a kind voice against a factual and a blunt one.
    - restatement: how exactly a sentence of the answer says the prompt back, its "my" turned into "your"
      (`restatement.py`), from 0 to 1: embeddings hardly see who did what, which readers mind most.
    - unturned: 1 if that sentence keeps an "I" or "my", as a copy of the prompt does.
    - repeats: share of the answer's word pairs that occurred in it before.
    - unfinished: 1 unless the model ended the answer itself with one of . ! ?

    In Chinese each character is a word, similarity to the prompt counts up to 0.45, 12 to 42 words are free, and twice
    the share of words in other scripts is subtracted. Not from a paper; the weight of `restatement` is the one that
    agrees best with blind readers' votes on earlier runs (docs/performance.md). It holds no list of words to please
    it, and depends on the whole sentence.
    """

    embed: Embed
    language: Language = ENGLISH

    def __call__(self, prompt: Prompt, samples: Sequence[Sample]) -> list[float]:
        """Return one score for each answer, about 0 to 7."""
        asked = prompt.messages[-1].content.strip()
        vectors = self.embed([sample.text for sample in samples])  # (K, d)
        direction, offset = self._taste
        kindness = 1 / (1 + np.exp(-(vectors @ direction + offset)))  # (K,)
        reply = self._kind_replies.get(asked)
        similar = vectors @ self.embed([reply or asked])[0]  # (K,)
        if reply is None:
            similar = np.minimum(similar, self.language.most_similar)
        said_back = [restatement(asked, sample.text, self.language.persons) for sample in samples]
        restated = np.array([2 * found.likeness - found.first_person for found in said_back])
        faults = [_faults(sample, self.language) for sample in samples]
        found: Vectors = 4 * similar + 1.5 * kindness + restated - faults
        return [float(score) for score in found]

    @cached_property
    def _kind_replies(self) -> dict[str, str]:
        return {reply.prompt: reply.kind for reply in read_replies(self.language)}

    @cached_property
    def _taste(self) -> tuple[Vectors, float]:
        """Direction (d,) and offset of kindness."""
        rows = read_replies(self.language)[: self.language.taste_rows]
        voices = [self.embed(texts) for texts in zip(*(row.voices for row in rows), strict=True)]  # 3 x (N, d)
        is_kind = np.repeat([1.0, 0.0, 0.0], len(rows))
        weights = logistic_regression(np.concatenate(voices), is_kind, self.language.taste_l2)
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


def _faults(sample: Sample, language: Language) -> float:
    """Return the points that an answer loses for its form."""
    answer = words(sample.text)
    pairs = list(pairwise(answer))
    repeats = 1 - len(set(pairs)) / len(pairs) if pairs else 1.0
    unfinished = not (sample.finished and sample.text.rstrip().endswith(tuple(language.ends)))
    foreign = [word for word in answer if not is_east_asian(word)] if language.east_asian else []
    return (
        2 * max(0.0, repeats - 0.05)
        + 0.5 * unfinished
        + 0.05 * max(0, language.fewest_words - len(answer))
        + 0.04 * max(0, len(answer) - language.most_words)
        + 2 * len(foreign) / max(1, len(answer))
    )
