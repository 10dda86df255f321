import random
from collections.abc import Sequence

import pytest

from lowrank_rlhf.preferences.agreement import (
    agreement_with_scores,
    alpha_level,
    consistency,
    krippendorff_alpha,
    length_bias,
    position_bias,
    ranking_statistics,
    same_order,
)
from lowrank_rlhf.run.records import Ranking, Sample


def ranking(annotator: str, *tiers: str, prompt_id: str = "p", shown: str = "") -> Ranking:
    """Each answer's id is one letter: `ranking("ann", "a", "bc")` puts a above the tied b and c."""
    return Ranking(prompt_id=prompt_id, tiers=tuple(map(tuple, tiers)), annotator=annotator, shown=tuple(shown))


def alpha_over_pairs_of_values(units: Sequence[Sequence[int]]) -> float:
    """Krippendorff's definition spelt out: 1 - (mean disagreement within units) / (mean disagreement of any two)."""
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    observed = sum((a != b) / (len(unit) - 1) for unit in units for a in unit for b in unit) / len(values)
    expected = sum(a != b for a in values for b in values) / (len(values) * (len(values) - 1))
    return 1 - observed / expected


def test_full_agreement_is_one() -> None:
    assert krippendorff_alpha([ranking("x", "a", "b", "cd"), ranking("y", "a", "b", "dc")]) == pytest.approx(1.0)


def test_agreement_that_always_favours_the_same_id_is_one_too() -> None:
    assert krippendorff_alpha([ranking("x", "a", "b"), ranking("y", "a", "b")]) == pytest.approx(1.0)


def test_by_hand() -> None:
    # Pairs ab, ac, bc: x says +++ and y says ++-. Both ways round: 6 units, 12 values, 6 of +1 and 6 of -1.
    # Observed disagreement 2 / 6; expected 2 * 6 * 6 / (12 * 11) = 6 / 11; alpha = 1 - (1/3) / (6/11) = 7 / 18.
    assert krippendorff_alpha([ranking("x", "a", "b", "c"), ranking("y", "a", "c", "b")]) == pytest.approx(7 / 18)


def test_opposite_orders_are_worse_than_chance() -> None:
    # 2 units of (+1, -1): observed 1, expected 2 * 2 * 2 / (4 * 3) = 2 / 3.
    assert krippendorff_alpha([ranking("x", "a", "b"), ranking("y", "b", "a")]) == pytest.approx(1 - 3 / 2)


def test_against_the_definition_with_missing_judgements_and_ties() -> None:
    rankings = [
        ranking("x", "a", "bc", "d"),
        ranking("y", "ab", "d"),
        ranking("z", "d", "c", "a", "b"),
        ranking("x", "f", "e", prompt_id="q"),
        ranking("z", "ef", prompt_id="q"),
        ranking("y", "g", "h", prompt_id="alone"),
    ]
    one_way = [
        [1, 0, 1],  # ab
        [1, -1],  # ac: y left c out
        [1, 1, -1],  # ad
        [0, -1],  # bc
        [1, 1, -1],  # bd
        [1, -1],  # cd
        [-1, 0],  # ef
        [1],  # gh: one annotator only
    ]
    expected = alpha_over_pairs_of_values(one_way + [[-value for value in unit] for unit in one_way])
    assert krippendorff_alpha(rankings) == pytest.approx(expected, abs=1e-12)
    assert expected < 0.2


def test_names_of_answers_do_not_matter() -> None:
    plain = [ranking("x", "a", "b", "c"), ranking("y", "a", "cb"), ranking("z", "b", "a", "c")]
    renamed = [ranking("x", "z", "b", "a"), ranking("y", "z", "ab"), ranking("z", "b", "z", "a")]
    assert krippendorff_alpha(plain) == pytest.approx(krippendorff_alpha(renamed))


def test_random_orders_agree_by_chance_only() -> None:
    generator = random.Random(1)
    rankings = [
        ranking(who, *generator.sample("abcd", 4), prompt_id=str(prompt)) for prompt in range(200) for who in "xy"
    ]
    assert krippendorff_alpha(rankings) == pytest.approx(0.0, abs=0.1)


def test_no_alpha_without_two_annotators_of_one_pair() -> None:
    assert krippendorff_alpha([]) is None
    assert krippendorff_alpha([ranking("x", "a", "b"), ranking("y", "a", "b", prompt_id="q")]) is None
    assert krippendorff_alpha([ranking("x", "a", "b"), ranking("y", "a", "c")]) is None
    assert krippendorff_alpha([ranking("x", "ab"), ranking("y", "ab")]) is None  # nothing but ties
    assert krippendorff_alpha([ranking("x", "a", "b"), ranking("x", "b", "a")]) is None  # changed her mind


def test_the_last_ranking_of_an_annotator_counts() -> None:
    rankings = [ranking("x", "b", "a"), ranking("y", "a", "b"), ranking("x", "a", "b")]
    assert krippendorff_alpha(rankings) == pytest.approx(1.0)


def test_position_bias() -> None:
    rankings = [
        ranking("x", "a", "b", shown="ab"),
        ranking("x", "c", "de", prompt_id="q", shown="dce"),
        ranking("x", "gf", "h", prompt_id="r", shown="gfh"),  # two best answers: cannot tell
        ranking("x", "i", "j", prompt_id="s"),  # order not recorded
        Ranking(prompt_id="t", tiers=(), annotator="x", shown=("k", "l")),
    ]
    bias = position_bias(rankings)
    assert bias is not None
    assert bias.shown_first == pytest.approx(1 / 2)
    assert bias.expected == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert bias.rankings == 2
    assert position_bias(rankings[2:]) is None


def test_length_bias() -> None:
    texts = {"a": "x" * 9, "b": "x" * 5, "c": "x" * 5, "d": "x"}
    samples = [Sample(id=key, prompt_id="p", text=text) for key, text in texts.items()]
    # b > a loses, b > c is even, b > d wins, a > d wins, c > d wins, a = c is a tie
    assert length_bias([ranking("x", "b", "ac", "d")], samples) == pytest.approx(3 / 4)
    assert length_bias([ranking("x", "b", "c")], samples) is None
    assert length_bias([], samples) is None


def test_figures() -> None:
    texts = {"a": "x" * 9, "b": "x" * 5, "c": "x" * 5, "d": "x"}
    samples = [Sample(id=key, prompt_id="p", text=text) for key, text in texts.items()]
    rankings = [
        ranking("x", "b", "ac", "d", shown="bacd").model_copy(update={"seconds": 3.0, "flags": ("unsure",)}),
        ranking("x", "a", "d", shown="da").model_copy(update={"seconds": 4.0}),
        ranking("y", "bcd").model_copy(update={"seconds": 90.0}),
    ]
    found = ranking_statistics(rankings, samples)
    assert (found.rankings, found.flagged, found.median_seconds) == (3, 1, 4.0)
    assert found.tied_pairs == pytest.approx((1 + 3) / (6 + 1 + 3))
    # The first as in test_length_bias, 3 of 4; in the second the longer wins.
    assert (found.longer_preferred, found.uneven_comparisons) == (pytest.approx(4 / 5), 5)
    assert found.position is not None
    assert (found.position.shown_first, found.position.expected) == (1 / 2, pytest.approx((1 / 4 + 1 / 2) / 2))


def test_figures_of_nothing() -> None:
    assert ranking_statistics([], []) == (0, None, None, 0, None, None, 0)
    alone = ranking_statistics([ranking("x", "a")], [])
    assert (alone.tied_pairs, alone.median_seconds) == (None, None)


@pytest.mark.parametrize(
    ("alpha", "word"),
    [
        (1.0, "good"),
        (0.8, "good"),
        (0.79, "fair"),
        (0.667, "fair"),
        (0.66, "weak"),
        (0.2, "weak"),
        (0.19, "none"),
        (-0.09, "none"),
        (-0.1, "opposite"),
        (None, "unknown"),
    ],
)
def test_a_word_for_alpha(alpha: float | None, word: str) -> None:
    assert alpha_level(alpha) == word


def test_what_was_left_out_together_is_not_a_tie() -> None:
    rest = ranking("x", "a", "bc").model_copy(update={"partial": True})
    whole = ranking("y", "a", "b", "c")
    # Without the pair bc, ab and ac agree; with it as a tie they would not.
    assert krippendorff_alpha([rest, whole]) == pytest.approx(1.0)
    assert krippendorff_alpha([rest.model_copy(update={"partial": False}), whole]) < 1
    answers = [Sample(id=name, prompt_id="p", text="") for name in "abc"]
    assert ranking_statistics([rest], answers).tied_pairs == 0
    assert ranking_statistics([ranking("x", "a", "bc")], answers).tied_pairs == pytest.approx(1 / 3)


def test_same_order_by_hand() -> None:
    one, other = ranking("x", "a", "b", "cd"), ranking("y", "b", "a", "c", "d")
    # Both order ab, ac, ad, bc, bd (x ties cd); they differ in ab only.
    assert same_order([one, other]) == (4 / 5, 5)
    assert same_order([one, ranking("x", "d", "c", "b", "a"), other]) == (1 / 6, 6)  # the later one of x counts
    assert same_order([one, ranking("y", "a", "b", prompt_id="q")]) is None
    three = [ranking(who, "a", "b") for who in "xy"] + [ranking("z", "b", "a")]
    assert same_order(three) == (1 / 3, 3)


def test_consistency_by_hand() -> None:
    first, second = ranking("x", "a", "b", "c"), ranking("x", "a", "c", "b")
    assert consistency([first, second]) == (2 / 3, 3)
    assert consistency([first, second, second]) == (5 / 6, 6)
    assert consistency([first, ranking("y", "a", "c", "b")]) is None


def test_agreement_with_scores_by_hand() -> None:
    """Of a > b, a > c, b > c the scores agree with two; ties, unknown answers and equal scores are left out."""
    assert agreement_with_scores([ranking("x", "a", "b", "c")], {"a": 0.9, "b": -0.1, "c": 0.5}) == (2 / 3, 3)
    assert agreement_with_scores([ranking("x", "ab", "c", "d")], {"a": 1.0, "b": 2.0, "c": 1.0}) == (1.0, 1)
    assert agreement_with_scores([ranking("x", "a", "b")], {"a": 1.0}) is None
