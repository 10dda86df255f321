"""Statistics of texts that reveal a repetitive policy. Pure Python."""

import re
from collections import Counter
from collections.abc import Sequence

# Chinese and Japanese have no spaces between words: each of their characters, and each Korean one, counts as a word.
EAST_ASIAN = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
"""East Asian characters, as ranges for a regular expression's character class."""
_LETTERS = rf"(?:(?![{EAST_ASIAN}])[^\W_])+"
_WORD = re.compile(rf"[{EAST_ASIAN}]|{_LETTERS}(?:['’]{_LETTERS})*")


def words(text: str) -> list[str]:
    """Split into lower-cased words without punctuation; each East Asian character is a word.

    Apostrophes inside words are kept; curly ones become straight.
    """
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def is_east_asian(word: str) -> bool:
    """Return True if every character of a word is East Asian."""
    return re.fullmatch(f"[{EAST_ASIAN}]+", word) is not None


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Return the share of distinct n-grams among all n-grams of the batch (Li et al. 2016, "distinct-n").

    No n-gram spans two texts; 0 without any n-gram. The share falls with the length and number of texts: compare
    batches of one size only. Raises `ValueError` for n < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    grams = [
        gram for tokens in map(words, texts) for gram in zip(*(tokens[start:] for start in range(n)), strict=False)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0


def top_opener(texts: Sequence[str]) -> tuple[str, float]:
    """Return the most common first two words and the share of texts that begin with them; ties go to the earliest.

    The opener of a text of one word is that word; a text without words has none but counts in the share.
    ("", 0.0) if no text has a word.
    """
    openers = Counter(_joined(tokens[:2]) for tokens in map(words, texts) if tokens)
    if not openers:
        return "", 0.0
    opener, count = openers.most_common(1)[0]
    return opener, count / len(texts)


def _joined(tokens: Sequence[str]) -> str:
    """Join words, East Asian characters without spaces."""
    together = all(map(is_east_asian, tokens))
    return ("" if together else " ").join(tokens)
