"""Statistics of texts that betray a policy which repeats itself. Pure Python."""

import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words(text: str) -> list[str]:
    """Lower-cased words without punctuation; an apostrophe inside a word stays, a curly one becomes straight."""
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
    openers = Counter(" ".join(tokens[:2]) for tokens in map(words, texts) if tokens)
    if not openers:
        return "", 0.0
    opener, count = openers.most_common(1)[0]
    return opener, count / len(texts)
