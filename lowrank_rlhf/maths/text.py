"""Statistics of texts that betray a policy which repeats itself. Pure Python."""

import re
from collections import Counter
from collections.abc import Sequence

# Chinese and Japanese write no spaces between words: each of their letters, and Korean's, counts as one.
EAST_ASIAN = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Those letters, for a character class of a regular expression."""
_LETTERS = rf"(?:(?![{EAST_ASIAN}])[^\W_])+"
_WORD = re.compile(rf"[{EAST_ASIAN}]|{_LETTERS}(?:['’]{_LETTERS})*")


def words(text: str) -> list[str]:
    """Lower-cased words without punctuation, and each East Asian letter as a word.

    An apostrophe inside a word stays, a curly one becomes straight.
    """
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams of the whole batch, in 0 to 1 (Li et al. 2016, "distinct-n").

    No n-gram spans two texts. 0 where there is no n-gram at all. Falls as texts grow longer or more numerous, so
    compare batches of one size only. Raises `ValueError` for n < 1.
    """
    if n < 1:
        raise ValueError(f"n-grams have at least one word, not {n}")
    grams = [
        gram for tokens in map(words, texts) for gram in zip(*(tokens[start:] for start in range(n)), strict=False)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0


def top_opener(texts: Sequence[str]) -> tuple[str, float]:
    """The commonest first two words and the share of all texts that open with them; the earliest one wins a tie.

    A text of one word opens with that word; one without words has no opener but counts in the share.
    ("", 0.0) where no text has a word.
    """
    openers = Counter(_joined(tokens[:2]) for tokens in map(words, texts) if tokens)
    if not openers:
        return "", 0.0
    opener, count = openers.most_common(1)[0]
    return opener, count / len(texts)


def _joined(tokens: Sequence[str]) -> str:
    """Words as they are written: East Asian letters without a space between."""
    together = all(re.fullmatch(f"[{EAST_ASIAN}]", token) for token in tokens)
    return ("" if together else " ").join(tokens)
