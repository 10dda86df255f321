"""Text statistics against counts made by hand."""

import pytest

from lowrank_rlhf.maths.text import distinct_n, top_opener, words


def test_words_are_lower_case_without_punctuation() -> None:
    assert words("Hello, World! I'm 25 — don’t_stop…") == ["hello", "world", "i'm", "25", "don't", "stop"]
    assert words("Çà été naïve") == ["çà", "été", "naïve"]
    assert words(" ...!? ") == []


def test_distinct_n_by_hand() -> None:
    texts = ["the cat sat", "The cat ran."]
    assert distinct_n(texts, 1) == 4 / 6  # the, cat, sat, ran
    assert distinct_n(texts, 2) == 3 / 4  # the cat, cat sat, cat ran; nothing across the two texts
    assert distinct_n(texts, 3) == 1.0
    assert distinct_n(texts, 4) == 0.0
    assert distinct_n([], 2) == 0.0


def test_distinct_n_counts_repeats_over_the_batch() -> None:
    assert distinct_n(["so very good"] * 10, 2) == 2 / 20


def test_distinct_n_needs_a_word() -> None:
    with pytest.raises(ValueError, match="at least one"):
        distinct_n(["a"], 0)


def test_top_opener_ignores_case_and_punctuation() -> None:
    texts = ["I'm thrilled!", "i’m, thrilled to say", "The weather", "Yes", ""]
    assert top_opener(texts) == ("i'm thrilled", 2 / 5)
    assert top_opener(["Yes", "yes."]) == ("yes", 1.0)


def test_top_opener_of_nothing() -> None:
    assert top_opener([]) == ("", 0.0)
    assert top_opener(["...", ""]) == ("", 0.0)
