"""Doubt about rankings: agreement by chance, of people or of one with oneself, and what would tell it from taste."""

import random
from itertools import permutations

import pytest

from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.preferences.store_rows import repeated_rankings
from lowrank_rlhf.preferences.team.doubt import _compare, doubt
from lowrank_rlhf.run.records import Message, Prompt, Ranking, Sample

ABCD = ("a", "b", "c", "d")


def ranked(annotator: str, order, prompt: str = "p") -> Ranking:
    return Ranking(prompt_id=prompt, tiers=tuple(tuple(tier) for tier in order), annotator=annotator)


def team(prompts: int, noise: float | None, seed: int, names: tuple[str, str] = ("ann", "bob")) -> list[Ranking]:
    """Two rankings of each prompt's four answers: by taste with noise, or at random."""
    draw, found = random.Random(seed), []
    for prompt in range(prompts):
        taste = {answer: draw.gauss(0, 1) for answer in ABCD}
        for name in names:
            felt = {a: draw.random() if noise is None else draw.gauss(taste[a], noise) for a in ABCD}
            found.append(ranked(name, sorted(ABCD, key=felt.__getitem__), f"p{prompt}"))
    return found


def tiers(order, sizes) -> list[tuple[str, ...]]:
    left = iter(order)
    return [tuple(next(left) for _ in range(size)) for size in sizes]


@pytest.mark.parametrize(
    ("one", "other"),
    [((1, 1, 1, 1), (1, 1, 1, 1)), ((1, 3), (1, 3)), ((1, 2, 1), (2, 2)), ((2, 1), (1, 1, 1)), ((1, 1), (1, 1))],
)
def test_the_variance_is_that_over_all_orders(one, other) -> None:
    """The oracle counts: all permutations of the other ranking's answers, tiers of the same sizes."""
    answers = ABCD[: sum(one)]
    mine = ranked("ann", tiers(answers, one))
    found = [_compare(mine, ranked("bob", tiers(order, other))) for order in permutations(answers)]
    assert sum(each.excess for each in found) == 0
    assert found[0].variance == pytest.approx(sum(each.excess**2 for each in found) / len(found))


@pytest.mark.parametrize("prompts", [6, 10, 20, 30])
@pytest.mark.parametrize("names", [("ann", "bob"), ("ann", "ann")])
def test_random_rankings_are_doubted(prompts: int, names: tuple[str, str]) -> None:
    """Of two people and of one who ranks twice; at most one in 40 passes, so of 100 teams hardly more than 8."""
    alone = names[0] == names[1]
    stopped = 0
    for seed in range(100):
        rankings = team(prompts, None, seed, names)
        found = doubt((), rankings) if alone else doubt(rankings)
        stopped += found is not None
    assert stopped >= 92


def test_people_who_usually_agree_pass_with_twenty_prompts() -> None:
    """The noise makes two agree on 72 % of pairs; with six prompts about half are told to rank more."""
    twenty = [doubt(team(20, 0.76, seed)) for seed in range(100)]
    assert sum(found is None for found in twenty) >= 95
    six = [found for seed in range(100) if (found := doubt(team(6, 0.76, seed)))]
    assert 25 <= len(six) <= 65
    assert {(found.more, found.alone) for found in six} == {(4, False)}


def test_how_many_more_by_hand() -> None:
    """Four answers: pairs 6, variance 156 / 18 each; 72 % of pairs are an excess of 2.64, shown with 9.75 prompts."""
    assert doubt([ranked("ann", "abcd"), ranked("bob", "dcba")]) == (0.0, 6, 9, False)
    assert doubt([ranked("ann", "abcd"), ranked("bob", "abcd")]) is None  # 6 > 1.96 * 2.94
    assert doubt([ranked("ann", "abcd"), ranked("bob", "abdc")]) == (pytest.approx(5 / 6), 6, 9, False)
    half = [ranked("ann", "abcd", f"p{i}") for i in range(12)]
    half += [ranked("bob", "abcd" if i % 2 else "dcba", f"p{i}") for i in range(12)]
    assert doubt(half) == (0.5, 72, 12, False)  # more than 10 did not tell: as many again
    opposite = [ranked(name, order, f"p{i}") for i in range(10) for name, order in (("ann", "abcd"), ("bob", "dcba"))]
    assert doubt(opposite) == (0.0, 60, 0, False)  # shown to be no better


def test_one_person_alone_is_measured_by_prompts_ranked_twice() -> None:
    opposite = [ranked("ann", order, f"p{i}") for order in ("abcd", "dcba") for i in range(12)]
    assert doubt((), opposite) == (0.0, 72, 12, True)
    assert doubt((), [ranked("ann", "abcd", f"p{i}") for _ in range(2) for i in range(2)]) is None
    assert doubt((), ()) is None
    assert doubt((), [ranked("ann", ["abcd"]), ranked("ann", "abcd")]) is None  # no pair that both order
    shared = [ranked(name, "abcd", f"q{i}") for i in range(2) for name in ("ann", "bob")]
    assert doubt(shared, opposite) is None  # people are measured against each other


def test_the_store_gives_prompts_that_one_person_ranked_twice(tmp_path) -> None:
    """Neither what two people ranked once each nor what was withdrawn."""
    store = AnnotationStore(tmp_path / "a.sqlite")
    prompts = [Prompt(id=f"p{i}", messages=(Message(role="user", content="Hi"),)) for i in range(4)]
    store.add_items(prompts, [Sample(id=f"{p.id}{k}", prompt_id=p.id, text=k) for p in prompts for k in "ab"])
    for prompt, name in ((0, "ann"), (0, "bob"), (1, "ann"), (1, "ann"), (2, "bob"), (2, "bob"), (3, "ann")):
        store.save(ranked(name, [(f"p{prompt}a",), (f"p{prompt}b",)], f"p{prompt}"))
    store.undo("ann")
    store.save(ranked("ann", [("p3b",), ("p3a",)], "p3"))
    with store.transaction() as database:
        found = repeated_rankings(database, 9)
        assert [(one.prompt_id, one.annotator) for one in found] == [("p1", "ann")] * 2 + [("p2", "bob")] * 2
        assert len(repeated_rankings(database, 1)) == 2
