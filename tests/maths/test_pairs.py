"""Ordered pairs of a ranking, by hand."""

from lowrank_rlhf.maths.pairs import ordered_pairs


def test_every_answer_is_paired_with_all_of_lower_tiers() -> None:
    assert list(ordered_pairs([["a"], ["b", "c"], ["d"]])) == [
        ("a", "b", 1),
        ("a", "c", 1),
        ("a", "d", 2),
        ("b", "d", 1),
        ("c", "d", 1),
    ]
    assert list(ordered_pairs([[0, 1]])) == list(ordered_pairs([])) == []
