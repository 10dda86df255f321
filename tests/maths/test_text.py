"""Text statistics against counts made by hand."""

import pytest

from lowrank_rlhf.maths.text import distinct_n, top_opener, words


def test_words_are_lower_case_without_punctuation() -> None:
    assert words("Hello, World! I'm 25 — don’t_stop…") == ["hello", "world", "i'm", "25", "don't", "stop"]
    assert words("Çà été naïve") == ["çà", "été", "naïve"]
    assert words(" ...!? ") == []


def test_east_asian_letters_are_words() -> None:
    assert words("你好，世界！GPT很don't好。") == ["你", "好", "世", "界", "gpt", "很", "don't", "好"]
    assert words("きょうはコーヒー・タイム") == list("きょうはコーヒータイム")
    assert words("人々 한국 \U00020000") == ["人", "々", "한", "국", "\U00020000"]


def test_distinct_n_of_chinese_by_hand() -> None:
    # 今天 天天 天气 气好 / 今天 天天 天好: today, every day, weather ...
    assert distinct_n(["今天天气好。", "今天天，好！"], 2) == 5 / 7
    assert distinct_n(["今天天气好。"] * 4, 2) == 4 / 16


def test_top_opener_of_chinese_is_written_without_a_space() -> None:
    assert top_opener(["今天很好", "今天，不好", "明天"]) == ("今天", 2 / 3)
    assert top_opener(["AI很好", "好"]) == ("ai 很", 1 / 2)


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
    with pytest.raises(ValueError, match="at least 1"):
        distinct_n(["a"], 0)


def test_top_opener_ignores_case_and_punctuation() -> None:
    texts = ["I'm thrilled!", "i’m, thrilled to say", "The weather", "Yes", ""]
    assert top_opener(texts) == ("i'm thrilled", 2 / 5)
    assert top_opener(["Yes", "yes."]) == ("yes", 1.0)


def test_top_opener_of_nothing() -> None:
    assert top_opener([]) == ("", 0.0)
    assert top_opener(["...", ""]) == ("", 0.0)
