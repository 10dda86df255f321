"""Built-in judges: each scores one answer at a time and downloads nothing."""

import re
from collections.abc import Callable, Hashable, Sequence
from difflib import SequenceMatcher
from functools import cache
from itertools import pairwise

from lowrank_rlhf.run.records import Prompt, Sample

Scores = Callable[[Prompt, Sequence[Sample]], list[float]]
"""One finite score for each answer, higher is better."""

WARMTH_WEIGHT = 0.85
TOPIC_WEIGHT = 0.15
OFF_TOPIC_WARMTH = 0.3  # share of the warmth that counts in an off-topic answer
PARROT_SHARE, PARROT_WORDS = 0.6, 4  # a run of over this share of the prompt and at least this many words
ENTHUSIASM_COST = 0.3
UNFINISHED_COST = 0.3
REPEAT_COST = 0.6
SHORT_COST, SHORT_WORDS = 0.5, 5

_STOP_TEXT = """
    a about all also am an and any are as ask at be been best but by can could describe did do does don't each every
    explain for from get give good had has have help her him his how i i'd i'll i'm i've if in into is it it's its just
    kind know let like list make me more most much my name need new no not of off on one or our out please say share she
    short should simple so some someone something suggest tell than that the their them then there these they thing
    things think this those to too two up us use very want was way we were what what's when where which while who why
    will with word would write you you're your
    """
_STOP_WORDS = frozenset(_STOP_TEXT.split())
_ENDING = re.compile(r"(?<=\w{3})(?:ing|ed|[iesy]+)$")
_GENERIC_ENTHUSIASM = re.compile(
    r"(?:\b(?:i am|i'm|i was|i'd be|i would be|we are|we're)(?: (?:so|very|really|truly|absolutely|just|always))*"
    r" (?:thrilled|excited|glad|happy|delighted|pleased|honou?red|ecstatic|overjoyed)\b"
    r"|\b(?:great|good|excellent|wonderful|fantastic|amazing|lovely) question\b)[^.!?]*"  # the sentence's rest
)
_SILENT_ENDING = re.compile(r"(?<=[aeiouy]l)es?$|(?<=[^aeiouyl])e$|(?<=[^aeiouclgsxzh])es$|(?<=[^aeioutd])ed$")
_STRAIGHT_QUOTES = str.maketrans("‘’“”", "''\"\"")
_FINAL_STOP = re.compile(r"[.!?][\"')\]*]*$")
_BANNED_PHRASES = (
    "as an ai",
    "as a language model",
    "i'm sorry, but",
    "i apologize",
    "it is important to note",
    "it's important to note",
    "it is worth noting",
    "it's worth noting",
    "in conclusion",
    "please note that",
    "feel free to",
    "i hope this helps",
    "delve into",
)


def sentiment(_prompt: Prompt, samples: Sequence[Sample]) -> list[float]:
    """Return VADER's compound sentiment in [-1, 1] (Hutto and Gilbert 2014); easily gamed."""
    return [_compound(sample.text) for sample in samples]


def simulated_annotator(prompt: Prompt, samples: Sequence[Sample]) -> list[float]:
    """Imitate a person who prefers warm, on-topic, finished answers; in [-1, 1], not from a paper.

        score = 0.85 warmth (0.3 + 0.7 topic if warmth > 0 else 1) + 0.15 (2 topic - 1)
                - 0.3 enthusiasm - 0.3 unfinished - 0.6 repeats - 0.5 max(0, 1 - words / 5), cut at -1

    - warmth: VADER's compound of the answer's words alone, so that capitals, exclamation marks and emoji add nothing,
      and without the sentences of generic enthusiasm. It saturates: four warm words score little more than two.
    - topic: 1 if the answer contains a content word of the prompt (stop words dropped, compared by their stems' first
      five letters), else 0; 0.5 if the prompt has no content word; 0 if the answer repeats a run of 4 or more words
      that is over 60 % of the prompt. In a conversation, the prompt is all turns except system messages, and
      repeating any one of them counts as parroting.
    - enthusiasm: 1 if the answer contains "I'm so thrilled", "I'd be happy", "great question" or similar.
    - unfinished: 1 unless the model ended the answer itself and its last character, quotes aside, is one of . ! ?
    - repeats: mean share of the answer's content words and of its word pairs that occurred in it before.

    Off-topic warmth scores at most 0.105; a neutral, finished, on-topic answer scores 0.15.
    """
    turns = [_words(message.content) for message in prompt.messages if message.role != "system"]
    return [_simulated_score(turns, sample) for sample in samples]


def _simulated_score(turns: Sequence[list[str]], sample: Sample) -> float:
    text = _plain(sample.text)
    words = _words(text)
    own_text, enthusiasm = _GENERIC_ENTHUSIASM.subn("", text)
    warmth = _compound(" ".join(_words(own_text)))
    topic = _on_topic(turns, words)
    if warmth > 0:
        warmth *= OFF_TOPIC_WARMTH + (1 - OFF_TOPIC_WARMTH) * topic
    finished = sample.finished and _FINAL_STOP.search(text)
    repeats = (_repeated(_stems(words)) + _repeated(list(pairwise(words)))) / 2
    score = (
        WARMTH_WEIGHT * warmth
        + TOPIC_WEIGHT * (2 * topic - 1)
        - (ENTHUSIASM_COST if enthusiasm else 0)
        - (0 if finished else UNFINISHED_COST)
        - REPEAT_COST * repeats
        - SHORT_COST * max(0.0, 1 - len(words) / SHORT_WORDS)
    )
    return max(-1.0, score)


def _on_topic(turns: Sequence[list[str]], answer: list[str]) -> float:
    wanted = {stem for turn in turns for stem in _stems(turn)}
    if not wanted:
        return 0.5
    if any(_parrots(turn, answer) for turn in turns):
        return 0.0
    return 1.0 if wanted & set(_stems(answer)) else 0.0


def _parrots(turn: list[str], answer: list[str]) -> bool:
    run = SequenceMatcher(None, turn, answer, autojunk=False).find_longest_match().size
    return run >= PARROT_WORDS and run > PARROT_SHARE * len(turn)


def _plain(text: str) -> str:
    """Return the text in lower case, with straight quotes and single spaces."""
    return " ".join(text.lower().translate(_STRAIGHT_QUOTES).split())


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d+", _plain(text))


def _sentences(text: str) -> list[list[str]]:
    return [words for part in re.split(r"[.!?]+(?:\s|$)", text) if (words := _words(part))]


def _stems(words: list[str]) -> list[str]:
    """Return the content words, each without a common ending and cut to five letters."""
    return [_ENDING.sub("", word.removesuffix("'s"))[:5] for word in words if word not in _STOP_WORDS]


def _repeated(items: Sequence[Hashable]) -> float:
    return 1 - len(set(items)) / len(items) if items else 0.0


@cache
def _compound_function() -> Callable[[str], dict[str, float]]:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # reads its lexicon, so only when needed

    return SentimentIntensityAnalyzer().polarity_scores


def _compound(text: str) -> float:
    return _compound_function()(text)["compound"]


def plain_language(_prompt: Prompt, samples: Sequence[Sample]) -> list[float]:
    """Return the Flesch reading ease, scaled to [0, 1], less penalties for stock phrases and shouting.

    The reading ease is divided by its highest value (121.22) and clipped at 0. Each stock phrase of assistants costs
    0.2, each shout (a word of four or more capitals, or a run of exclamation marks) 0.1, so the score can be negative.
    Nothing is tuned on this judge.
    """
    return [_plain_score(sample.text) for sample in samples]


def _plain_score(text: str) -> float:
    phrases = sum(map(_plain(text).count, _BANNED_PHRASES))
    shouts = len(re.findall(r"\b[A-Z]{4,}\b|!{2,}", text))
    return max(0.0, flesch_reading_ease(text) / 121.22) - 0.2 * phrases - 0.1 * shouts


def flesch_reading_ease(text: str) -> float:
    """Return 206.835 - 1.015 words / sentences - 84.6 syllables / words (Flesch 1948); 0 without words."""
    words = _words(text)
    if not words:
        return 0.0
    return 206.835 - 1.015 * len(words) / len(_sentences(text)) - 84.6 * sum(map(count_syllables, words)) / len(words)


def count_syllables(word: str) -> int:
    """Count groups of vowels, without a silent final e, es or ed; at least 1. Right for most English words."""
    stem = _SILENT_ENDING.sub("", word.lower())
    return max(1, len(re.findall(r"[aeiouy]+", stem)))


BUILT_IN: dict[str, Scores] = {
    "simulated-annotator": simulated_annotator,
    "sentiment": sentiment,
    "plain-language": plain_language,
}
