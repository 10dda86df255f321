"""Signs of rankings without judgement, by hand values and by simulated people."""

import random
import time
from itertools import permutations
from pathlib import Path

import pytest

from lowrank_rlhf.preferences.agreement import Alike, alike
from lowrank_rlhf.preferences.carelessness import Sign, check_annotators, near_chance
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run.records import Message, Prompt, Ranking, Sample

ORDERS = list(permutations("abcd"))


def ranked(
    annotator: str, tiers, shown="abcd", prompt: str = "p", seconds: float | None = None, partial=False
) -> Ranking:
    return Ranking(
        prompt_id=prompt, tiers=tuple(map(tuple, tiers)), annotator=annotator, shown=tuple(shown), seconds=seconds,
        partial=partial,
    )  # fmt: skip


def signs(rankings, text: str = "x") -> dict[str, tuple[Sign, ...]]:
    samples = [Sample(id=name, prompt_id="p", text=text, finished=True) for name in "abcd"]
    return {one.annotator: one.signs for one in check_annotators(rankings, samples)}


class TestPattern:
    def test_the_same_keys_for_every_prompt(self) -> None:
        """Four answers have 24 orders. Of 10 random ones, any at least 9 times: 24 (10 23 / 24^10 + 1 / 24^10)."""
        typed = [ranked("ann", shown, shown, f"p{i}") for i, shown in enumerate(ORDERS[:9])]
        typed.append(ranked("ann", "badc", "abcd", "p9"))
        (found,) = check_annotators(typed, [])
        assert (found.signs, found.pattern, found.place) == ((Sign.PATTERN, Sign.PLACE), 0.9, 0.9)

    def test_too_few_rankings_show_nothing(self) -> None:
        assert signs([ranked("ann", "abcd", "abcd", f"p{i}") for i in range(9)]) == {"ann": ()}

    def test_always_the_first_of_two_needs_more_rankings(self) -> None:
        """Two answers: all of n first or all second has probability 2 / 2^n, below .001 from n = 11 on."""
        for count, found in ((10, ()), (11, (Sign.PATTERN, Sign.PLACE))):
            assert signs([ranked("ann", "ab", "ab", f"p{i}") for i in range(count)]) == {"ann": found}

    def test_the_first_card_is_always_best(self) -> None:
        """The other places are random, so no whole pattern repeats."""
        draw = random.Random(3)
        rankings = []
        for i in range(40):
            first, *rest = draw.sample("abcd", 4)
            rankings.append(ranked("ann", [first, *draw.sample(rest, 3)], [first, *rest], f"p{i}"))
        assert signs(rankings) == {"ann": (Sign.PLACE,)}

    @pytest.mark.parametrize("careless", [False, True])
    def test_thousands_of_rankings(self, careless: bool) -> None:
        """The tail of 3,000 rankings overflows as a product of powers."""
        draw = random.Random(4)
        shown = [draw.sample("abcd", 4) for _ in range(3000)]
        rankings = [ranked("ann", one if careless else "abcd", one, f"p{i}") for i, one in enumerate(shown)]
        assert signs(rankings) == {"ann": (Sign.PATTERN, Sign.PLACE) if careless else ()}

    @pytest.mark.parametrize("shape", ["order", "best only", "two tiers"])
    def test_people_with_a_taste_are_hardly_ever_suspected(self, shape: str) -> None:
        """They prefer a to b to c to d; the answers are shuffled. Below .001 a person, so none of 300."""
        tiers = {"order": "abcd", "best only": ("a", "bcd"), "two tiers": ("ab", "cd")}[shape]
        draw, found = random.Random(1), []
        for person in range(300):
            shown = [draw.sample("abcd", 4) for _ in range(24)]
            rankings = [ranked(f"{person}", tiers, one, f"p{i}") for i, one in enumerate(shown)]
            found += [sign for each in signs(rankings).values() for sign in each]
        assert found == []

    def test_ties_only_and_unknown_places_are_no_pattern(self) -> None:
        tied = [ranked("ann", ["abcd"], prompt=f"p{i}") for i in range(20)]
        imported = [ranked("bob", "abcd", "", f"p{i}") for i in range(20)]
        assert signs([*tied, *imported]) == {"ann": (), "bob": ()}


def test_faster_than_reading() -> None:
    """Four answers of 70 letters take four seconds at most."""
    for text, seconds, found in (
        ("x" * 70, 3.9, (Sign.FAST,)),
        ("x" * 70, 4.1, ()),
        ("\u6625" * 20, 3.9, (Sign.FAST,)),  # a Chinese character counts as 3.5 letters
        ("\u6625" * 20, 4.1, ()),
    ):
        rankings = [ranked("ann", ORDERS[i], "abcd", f"p{i}", seconds) for i in range(10)]
        assert signs(rankings, text) == {"ann": found}


class TestAgreement:
    def test_each_two_by_hand(self) -> None:
        """ann and bob agree on ab, ac, bc; cy orders the first two the other way round."""
        rankings = [ranked("ann", "abc"), ranked("bob", "abc"), ranked("cy", "bac"), ranked("dan", "ab", prompt="q")]
        assert alike(rankings) == [
            ("p", ("ann", "bob"), 3, 3), ("p", ("ann", "cy"), 2, 3), ("p", ("bob", "cy"), 2, 3),
        ]  # fmt: skip
        found = {one.annotator: one.agreement for one in check_annotators(rankings, [])}
        assert found == {"ann": (5 / 6, 6), "bob": (5 / 6, 6), "cy": (4 / 6, 6), "dan": None}

    def test_near_chance_needs_ten_prompts(self) -> None:
        for prompts, found in ((9, False), (10, True)):
            assert near_chance([Alike(f"p{i}", ("ann", "bob"), 0, 6) for i in range(prompts)]) is found
        assert not near_chance([])

    def test_the_interval_is_over_prompts(self) -> None:
        """Of 20 prompts half are ranked alike, half the other way round: 50 % of 300 pairs, but an interval to 70 %."""
        assert not near_chance([Alike(f"p{i}", ("ann", "bob"), 15 * (i % 2), 15) for i in range(20)])
        assert near_chance([Alike(f"p{i}", ("ann", "bob"), 7 + i % 2, 15) for i in range(20)])

    def test_a_person_at_random_is_named(self) -> None:
        """With two others who agree; alone with one other both are, as nobody can say which."""
        draw = random.Random(2)
        rankings = [
            ranked(name, draw.sample("abcd", 4) if name == "cy" else "abcd", draw.sample("abcd", 4), f"p{i}")
            for i in range(60)
            for name in ("ann", "bob", "cy")
        ]
        assert signs(rankings) == {"ann": (), "bob": (), "cy": (Sign.CHANCE,)}
        two = [one for one in rankings if one.annotator != "ann"]
        assert signs(two) == {"bob": (Sign.CHANCE,), "cy": (Sign.CHANCE,)}

    def test_who_contradicts_oneself_is_named(self) -> None:
        """cy orders 12 prompts the other way round the second time; of nine no one is named."""
        for prompts, found in ((12, (Sign.AGAIN,)), (9, ())):
            first = [ranked(name, "abcd", prompt=f"p{i}", shown="") for i in range(prompts) for name in ("ann", "cy")]
            again = [
                one.model_copy(update={"tiers": one.tiers[::-1]}) if one.annotator == "cy" else one for one in first
            ]
            ann, cy = check_annotators(first, [], kept=first + again)
            assert (ann.own_agreement, cy.own_agreement) == ((1.0, 6 * prompts), (0.0, 6 * prompts))
            assert (ann.signs, cy.signs) == ((), found)

    def test_many_annotators_take_no_time(self) -> None:
        """30 people on 200 prompts with six answers: 87,000 pairs of rankings."""
        orders = list(permutations("abcdef"))[:30]
        rankings = [ranked(f"{k}", order, prompt=f"p{i}") for i in range(200) for k, order in enumerate(orders)]
        start = time.process_time()
        assert len(alike(rankings)) == 200 * 30 * 29 / 2
        assert time.process_time() - start < 5  # 0.5 s; 22 s if each pair of rankings were compared anew


def test_the_store_gives_the_rankings_of_shared_prompts(tmp_path: Path) -> None:
    store = AnnotationStore(tmp_path / "annotations.sqlite")
    prompts = [Prompt(id=name, messages=(Message(role="user", content="?"),)) for name in "pqr"]
    samples = [
        Sample(id=f"{prompt.id}{k}", prompt_id=prompt.id, text=str(k), finished=True)
        for prompt in prompts
        for k in (0, 1)
    ]
    store.add_items(prompts, samples)

    def save(annotator: str, prompt: str) -> None:
        store.save(Ranking(prompt_id=prompt, tiers=((f"{prompt}0",), (f"{prompt}1",)), annotator=annotator))

    for annotator, prompt in (("ann", "p"), ("ann", "q"), ("bob", "q"), ("bob", "r"), ("cy", "r")):
        save(annotator, prompt)
    assert [(one.annotator, one.prompt_id) for one in store.shared_rankings(9, 9)] == [
        ("ann", "q"), ("bob", "q"), ("bob", "r"), ("cy", "r"),
    ]  # fmt: skip
    assert len(store.shared_rankings(1, 9)) == 2
    save("dan", "r")
    assert [one.annotator for one in store.shared_rankings(9, 2)] == ["ann", "bob", "bob", "cy"]
    store.undo("cy")
    assert [one.annotator for one in store.shared_rankings(9, 9)] == ["ann", "bob", "bob", "dan"]
