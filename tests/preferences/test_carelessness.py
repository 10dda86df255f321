"""Signs of rankings without judgement, by hand values and by simulated people."""

import random
from itertools import permutations
from pathlib import Path

import pytest

from lowrank_rlhf.preferences.agreement import SameOrder, agreement_by_annotator
from lowrank_rlhf.preferences.carelessness import LETTERS_PER_SECOND, Sign, check_annotators, near_chance
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


def signs(rankings, length: int = 10) -> dict[str, tuple[Sign, ...]]:
    samples = [Sample(id=name, prompt_id="p", text="x" * length, finished=True) for name in "abcd"]
    return {one.annotator: one.signs for one in check_annotators(rankings, samples)}


class TestPattern:
    def test_the_same_keys_for_every_prompt(self) -> None:
        """Four answers have 24 orders. Of 10 random ones, any at least 9 times: 24 (10 23 / 24^10 + 1 / 24^10)."""
        typed = [ranked("ann", shown, shown, f"p{i}") for i, shown in enumerate(ORDERS[:9])]
        typed.append(ranked("ann", "badc", "abcd", "p9"))
        (found,) = check_annotators(typed, [])
        assert (found.signs, found.pattern) == ((Sign.PATTERN,), 0.9)

    def test_too_few_rankings_show_nothing(self) -> None:
        assert signs([ranked("ann", "abcd", "abcd", f"p{i}") for i in range(9)]) == {"ann": ()}

    def test_always_the_first_of_two_needs_more_rankings(self) -> None:
        """Two answers: all of n first or all second has probability 2 / 2^n, below .001 from n = 11 on."""
        for count, found in ((10, ()), (11, (Sign.PATTERN,))):
            assert signs([ranked("ann", "ab", "ab", f"p{i}") for i in range(count)]) == {"ann": found}

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
    for seconds, found in ((3.9, (Sign.FAST,)), (4.1, ())):
        rankings = [ranked("ann", ORDERS[i], "abcd", f"p{i}", seconds) for i in range(10)]
        assert signs(rankings, int(LETTERS_PER_SECOND)) == {"ann": found}


class TestAgreement:
    def test_each_with_the_others_by_hand(self) -> None:
        """ann and bob agree on ab, ac, bc; cy orders the first two the other way round."""
        rankings = [ranked("ann", "abc"), ranked("bob", "abc"), ranked("cy", "bac"), ranked("dan", "ab", prompt="q")]
        assert agreement_by_annotator(rankings) == {
            "ann": SameOrder(5 / 6, 6), "bob": SameOrder(5 / 6, 6), "cy": SameOrder(4 / 6, 6),
        }  # fmt: skip

    def test_near_chance_needs_pairs(self) -> None:
        """Wilson's interval of 50 % ends at .66 with 30 pairs and at .596 with 100."""
        assert not near_chance(None)
        assert not near_chance(SameOrder(0.5, 30))
        assert near_chance(SameOrder(0.5, 100))
        assert not near_chance(SameOrder(0.63, 1000))
        assert not near_chance(SameOrder(0.0, 29))

    def test_a_person_at_random_is_named(self) -> None:
        draw = random.Random(2)
        rankings = [
            ranked(name, draw.sample("abcd", 4) if name == "cy" else "abcd", draw.sample("abcd", 4), f"p{i}")
            for i in range(40)
            for name in ("ann", "bob", "cy")
        ]
        assert signs(rankings) == {"ann": (), "bob": (), "cy": (Sign.CHANCE,)}


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
    assert [(one.annotator, one.prompt_id) for one in store.shared_rankings(9)] == [
        ("ann", "q"), ("bob", "q"), ("bob", "r"), ("cy", "r"),
    ]  # fmt: skip
    assert len(store.shared_rankings(1)) == 2
    save("dan", "r")
    store.undo("cy")
    assert [one.annotator for one in store.shared_rankings(9)] == ["ann", "bob", "bob", "dan"]
