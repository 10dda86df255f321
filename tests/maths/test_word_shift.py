"""Changes of wording: answers with a known change, answers of one model, and equal length."""

import random

import pytest

from lowrank_rlhf.maths.word_shift import favoured_words, variety_change

NOUNS = [f"noun{chr(97 + index)}" for index in range(26)]


def answers(source: random.Random, count: int, length: int, praise: float = 0.0) -> list[str]:
    """Return answers of random nouns, a share of which contain a word of praise."""
    texts = []
    for _ in range(count):
        tokens = source.choices(NOUNS, weights=range(1, 27), k=length)
        if source.random() < praise:
            tokens[source.randrange(length // 2)] = source.choice(["happy", "lovely"])
        texts.append(" ".join(tokens))
    return texts


def test_words_that_grow_are_named_with_the_share_of_answers_that_contain_any() -> None:
    before = ["Prune the roses in spring.", "Water them.", "A happy plant.", *["Take care of it now."] * 17]
    after = ["Happy roses!", "A lovely, happy day.", "A happy plant.", *["Take care, lovely plant."] * 9]
    after += ["Take care of it now."] * 8
    found = favoured_words(before, after)
    assert found is not None
    assert found.words == ("lovely", "plant")  # happy is gained once only where the pairs are equally long
    assert (found.before, found.after) == (1 / 20, 11 / 20)
    assert found.p < 0.01


def test_a_word_that_falls_is_not_named() -> None:
    found = favoured_words(["cold rain"] * 20 + ["dry day"] * 10, ["warm rain"] * 20 + ["wet day"] * 10)
    assert found is not None
    assert found.words == ("warm", "wet")
    assert (found.before, found.after) == (0, 1)
    assert favoured_words(["cold rain"] * 20, ["rain rain"] * 20) is None


def test_grammar_and_length_are_no_favourites() -> None:
    source = random.Random(1)
    before = answers(source, 100, 12)
    function_words = [f"{text} and is the you" for text in before]
    assert favoured_words(before, function_words) is None
    longer = [f"{text} {more}" for text, more in zip(before, answers(source, 100, 12), strict=True)]
    assert favoured_words(before, longer) is None  # every word is in more answers, none at equal length


def test_chinese_words_are_two_adjacent_characters() -> None:
    before, after = ["春天修剪玫瑰。"] * 30, ["美丽的玫瑰。"] * 30
    found = favoured_words(before, after)
    assert found is not None
    assert "美丽" in found.words
    assert found.after == 1


def test_two_samples_of_one_model_are_rarely_called_different() -> None:
    """Level 5 %: of 200 pairs of samples from one model 10 are expected, and more than 20 in one case of 1,000."""
    source, called = random.Random(2), 0
    for _ in range(200):
        found = favoured_words(answers(source, 60, 10, 0.3), answers(source, 60, 10, 0.3), samples=200)
        called += found is not None and found.p <= 0.05
    assert called <= 20


def test_a_share_of_40_points_more_is_found() -> None:
    source = random.Random(3)
    found = favoured_words(answers(source, 100, 12, 0.2), answers(source, 100, 12, 0.6))
    assert found is not None
    assert {"happy", "lovely"} <= set(found.words)
    assert found.p <= 0.01


def test_variety_by_hand_at_equal_length() -> None:
    """Cut to three and two words: word pairs (a b, b c, d e) and (a b, b a, a b)."""
    found = variety_change(["a b c", "d e"], ["a b a b a b", "a b f g h"])
    assert (found.before, found.after) == (1.0, 2 / 3)
    # Of the four exchanges, none and that of the first prompt alone have a b twice on the second side: p is 1/2.
    assert found.p == pytest.approx(0.5, abs=0.1)


def test_a_fall_of_variety_is_told_from_noise() -> None:
    source = random.Random(4)
    before = answers(source, 80, 12)
    same = variety_change(before, answers(source, 80, 12))
    assert same.p > 0.05
    stuck = [f"{text} great day great day" for text in answers(source, 80, 8)]
    fallen = variety_change(before, stuck)
    assert fallen.p <= 0.01
    assert fallen.after < fallen.before
    assert variety_change(stuck, before).p > 0.5


def test_lists_of_different_lengths_are_refused() -> None:
    for function in (favoured_words, variety_change):
        with pytest.raises(ValueError, match="argument"):
            function(["a"], [])
