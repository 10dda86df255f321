"""Restatement of a message in the second person: hand values."""

import pytest

from lowrank_rlhf.preferences.judges.restatement import PERSONS_EN, PERSONS_ZH, restatement


@pytest.mark.parametrize(
    ("message", "answer", "likeness", "first_person"),
    [
        ("My daughter won a medal.", "Your daughter won a medal. How do you feel?", 1.0, False),
        ("My daughter won a medal.", "My daughter won a medal. How do you feel?", 0.8, True),  # 4 words of 5 match
        ("My daughter won a medal.", "You won a medal. What was that like?", 6 / 9, False),  # 3 match: the wrong person
        ("The frost came.", "The frost came. How are you?", 1.0, False),  # nothing to turn
        ("My girl and I move in.", "Your girl and I move in.", 10 / 12, True),  # turned in part
        ("My key fell.", "Your key fell. I am here if you want to talk.", 1.0, False),  # in another sentence
        ("I'm late and I can't sleep.", "You are late and you can't sleep!", 1.0, False),
        ("I was late, we've lost ours.", "You were late, you have lost yours.", 1.0, False),
        ("I lost my key.", "What now?", 0.0, False),
        ("I lost my key.", "How sad. You lost your key. What now?", 1.0, False),  # the second sentence
        ("I lost my key.", "Key your lost you.", 2 / 8, False),  # one word: order counts
        ("I lost my key.", "", 0.0, False),
        ("...", "?", 0.0, False),
    ],
)
def test_hand_values(message, answer, likeness, first_person) -> None:
    found = restatement(message, answer, PERSONS_EN)
    assert found.likeness == pytest.approx(likeness, abs=1e-12)
    assert found.first_person is first_person


@pytest.mark.parametrize(
    ("answer", "likeness", "first_person"),
    [
        ("你的钥匙丢了。现在怎么样？", 1.0, False),
        ("我的钥匙丢了。现在怎么样？", 5 / 6, True),
        ("钥匙丢了？", 8 / 10, False),
    ],
)
def test_each_chinese_character_is_a_word(answer, likeness, first_person) -> None:
    found = restatement("我的钥匙丢了。", answer, PERSONS_ZH)
    assert found.likeness == pytest.approx(likeness, abs=1e-12)
    assert found.first_person is first_person
