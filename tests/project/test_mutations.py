"""Table of mutations (tools/mutate.py): each can still be applied, and its tests exist."""

import ast
from collections import Counter
from pathlib import Path

import pytest
from mutate import BAD, DIED, NOT_APPLIED, SURVIVED, Mutation, outcome, read_mutations, summary

ROOT = Path(__file__).parents[2]
MUTATIONS = read_mutations()


def test_every_mutation_still_applies_exactly_once() -> None:
    assert [problem for mutation in MUTATIONS if (problem := mutation.problem())] == []


def test_a_mutated_file_is_still_python() -> None:
    """A syntax error would die of any test and show nothing."""
    for mutation in MUTATIONS:
        if mutation.file.endswith(".py"):
            text = (ROOT / mutation.file).read_text(encoding="utf-8")
            ast.parse(text.replace(mutation.old, mutation.new), mutation.id)


def test_there_are_enough_and_each_area_has_some() -> None:
    areas = Counter(mutation.id.partition("/")[0] for mutation in MUTATIONS)
    expected = {"maths", "statistics", "models", "training", "stages", "evaluation", "pipeline", "page", "data"}
    assert areas.keys() == expected
    assert min(areas.values()) >= 15
    assert len(MUTATIONS) >= 120
    assert sum(bool(mutation.survives) for mutation in MUTATIONS) <= 0.05 * len(MUTATIONS)
    assert len({mutation.id for mutation in MUTATIONS}) == len(MUTATIONS)


def test_the_files_and_functions_of_their_tests_exist() -> None:
    for mutation in MUTATIONS:
        for selected in mutation.tests.split():
            name, *parts = selected.split("::")
            text = (ROOT / name).read_text(encoding="utf-8")
            for part in parts:
                assert f" {part.partition('[')[0]}" in text, f"{mutation.id}: {selected} not found"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of one module and one test of it."""
    (tmp_path / "half.py").write_text("def half(x):\n    return x / 2\n")
    tests = ("def test_half():\n    assert half(4) == 2\n", "def test_zero():\n    assert half(0) == 0\n")
    (tmp_path / "test_half.py").write_text("\n\n".join(("from half import half\n", *tests)))
    return tmp_path


def mutation(old: str = "x / 2", new: str = "x / 3", tests: str = "test_half.py", survives: str = "") -> Mutation:
    return Mutation("area/half", "half.py", old, new, tests, survives)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (mutation(), DIED),
        (mutation(new="(2 / x"), DIED),
        (mutation(tests="test_half.py::test_zero"), SURVIVED),
        (mutation(tests="test_half.py::test_zero", survives="0 / 3 is 0 too"), "survived, explained"),
        (mutation(old="x / 4"), NOT_APPLIED),
        (mutation(old="x"), NOT_APPLIED),
        (mutation(tests="test_half.py::test_none"), "fails without a mutation"),
    ],
)
def test_what_becomes_of_a_mutation(checkout: Path, given: Mutation, expected: str) -> None:
    before = (checkout / "half.py").read_text()
    assert outcome(given, checkout, {}) == expected
    assert (checkout / "half.py").read_text() == before


def test_the_summary_counts_by_area_and_names_the_survivors() -> None:
    explained = Mutation("other/zero", "half.py", "x", "y", "", "no test can see it")
    text = summary([mutation(), explained], {"area/half": SURVIVED, "other/zero": "survived, explained"})
    assert SURVIVED in BAD
    assert text.splitlines()[-2:] == [
        "area/half: survived",
        "other/zero: survived, explained: no test can see it",
    ]
    assert text.splitlines()[3].split() == ["all", "2", "0", "1", "1", "0.0%"]
