"""Restatement: how exactly a reply says a message back to its author, "my" turned into "your"."""

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from operator import itemgetter
from typing import NamedTuple

from lowrank_rlhf.maths.text import words

PERSONS_EN: Mapping[str, str] = {
    **dict.fromkeys(("i", "me", "we", "us"), "you"),
    **dict.fromkeys(("my", "our"), "your"),
    **dict.fromkeys(("mine", "ours"), "yours"),
    "myself": "yourself",
    "ourselves": "yourselves",
}
PERSONS_ZH: Mapping[str, str] = {"我": "你", "咱": "你"}

_CONTRACTIONS = {"n't": "not", "'m": "are", "'re": "are", "'ve": "have", "'ll": "will", "'d": "would"}
_CONTRACTED = re.compile(f"(.+)({'|'.join(_CONTRACTIONS)})")
_VERBS = {"am": "are", "was": "were"}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


class Restatement(NamedTuple):
    """The sentence of an answer that is closest to the message in the second person."""

    likeness: float
    """From 0 to 1."""
    first_person: bool
    """True if it keeps a word of the first person, as a copy of the message does."""


def restatement(message: str, answer: str, persons: Mapping[str, str]) -> Restatement:
    """Compare each sentence of an answer with the message in the second person.

    Likeness is Ratcliff and Obershelp's on words: twice the number of words in matching runs over all words of both
    (`difflib.SequenceMatcher.ratio`). Contractions count as written out ("I'm" as "I am"), and verbs that change with
    the person as one ("am" as "are", "was" as "were"); Chinese verbs don't.

    Args:
        message: what the answer replies to.
        answer: any number of sentences.
        persons: words of the first person, and those of the second that replace them.
    """
    turned = [persons.get(word, word) for word in _words(message)]
    sentences = [_words(sentence) for sentence in _SENTENCE_END.split(answer)]
    likeness, closest = max(((_ratio(turned, sentence), sentence) for sentence in sentences), key=itemgetter(0))
    return Restatement(likeness, any(word in persons for word in closest))


def _words(text: str) -> list[str]:
    return [_VERBS.get(part, part) for word in words(text) for part in _parts(word)]


def _parts(word: str) -> tuple[str, ...]:
    contracted = _CONTRACTED.fullmatch(word)
    return (contracted[1], _CONTRACTIONS[contracted[2]]) if contracted else (word,)


def _ratio(one: Sequence[str], other: Sequence[str]) -> float:
    return SequenceMatcher(None, one, other, autojunk=False).ratio() if one else 0.0
