from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_rlhf.preferences.expand import compare, ranking_from_scores
from lowrank_rlhf.run.records import Ranking, Sample

scores_lists = st.lists(st.integers(-4, 4).map(lambda n: n / 4), min_size=1, max_size=7)


def samples_for(scores: list[float]) -> list[Sample]:
    return [Sample(id=f"s{i}", prompt_id="p", text="") for i in range(len(scores))]


def rank(scores: list[float], tie_margin: float = 0.0) -> Ranking:
    return ranking_from_scores("p", samples_for(scores), scores, "judge", tie_margin)


def test_tiers_by_hand() -> None:
    assert rank([0.1, 0.9, 0.5, 0.9]).tiers == (("s1", "s3"), ("s2",), ("s0",))


def test_ties_are_measured_from_the_best_of_the_tier() -> None:
    assert rank([4, 3, 2, 1], tie_margin=1).tiers == (("s0", "s1"), ("s2", "s3"))  # a chain is no tie
    assert rank([4, 3, 2, 1], tie_margin=2).tiers == (("s0", "s1", "s2"), ("s3",))


def test_what_was_shown_is_kept() -> None:
    ranking = ranking_from_scores("p", samples_for([1, 2]), [1, 2], "judge", 0.0, ["s1", "s0"])
    assert (ranking.shown, ranking.annotator, ranking.prompt_id) == (("s1", "s0"), "judge", "p")
    with pytest.raises(ValueError, match="longer"):
        ranking_from_scores("p", samples_for([1, 2]), [1], "judge")


def test_comparisons_by_hand() -> None:
    ranking = Ranking(prompt_id="p", tiers=(("a",), ("b", "c"), ("d",)), annotator="ann")
    pairs = [(pair.chosen, pair.rejected, pair.tier_gap) for pair in compare(ranking)]
    assert pairs == [("a", "b", 1), ("a", "c", 1), ("a", "d", 2), ("b", "d", 1), ("c", "d", 1)]
    assert {(pair.prompt_id, pair.annotator) for pair in compare(ranking)} == {("p", "ann")}
    assert compare(Ranking(prompt_id="p", tiers=(), annotator="ann")) == []


@settings(max_examples=60, deadline=None)
@given(scores_lists)
def test_expansion_follows_the_scores(scores: list[float]) -> None:
    won = {(int(pair.chosen[1:]), int(pair.rejected[1:])) for pair in compare(rank(scores))}
    expected = {(i, j) for i in range(len(scores)) for j in range(len(scores)) if scores[i] > scores[j]}
    assert won == expected  # ties give nothing
    assert not won & {(j, i) for i, j in won}


@settings(max_examples=60, deadline=None)
@given(scores_lists, st.sampled_from([0.0, 0.25, 0.6]))
def test_number_of_comparisons(scores: list[float], tie_margin: float) -> None:
    ranking = rank(scores, tie_margin)
    assert len(compare(ranking)) == sum(len(a) * len(b) for a, b in combinations(ranking.tiers, 2))
    assert sorted(sample for tier in ranking.tiers for sample in tier) == sorted(f"s{i}" for i in range(len(scores)))


@settings(max_examples=60, deadline=None)
@given(scores_lists)
def test_negated_scores_swap_chosen_and_rejected(scores: list[float]) -> None:
    forward = {(pair.chosen, pair.rejected, pair.tier_gap) for pair in compare(rank(scores))}
    backward = {(pair.rejected, pair.chosen, pair.tier_gap) for pair in compare(rank([-score for score in scores]))}
    assert forward == backward


@settings(max_examples=60, deadline=None)
@given(scores_lists, st.randoms(use_true_random=False))
def test_the_order_given_does_not_matter_and_a_ranking_round_trips(scores: list[float], random) -> None:
    ranking = rank(scores)
    pairs = list(zip(samples_for(scores), scores, strict=True))
    random.shuffle(pairs)
    assert ranking_from_scores("p", [s for s, _ in pairs], [x for _, x in pairs], "judge") == ranking
    tier_of = {sample: index for index, tier in enumerate(ranking.tiers) for sample in tier}
    assert rank([-tier_of[f"s{i}"] for i in range(len(scores))]) == ranking
    assert Ranking.model_validate_json(ranking.model_dump_json()) == ranking
