"""The two sets of exact versions: both lie in the ranges of the package, and differ only where unsloth wants it."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SETS = ("requirements.txt", "requirements-unsloth.txt")
OTHER_IN_THE_SECOND = {"transformers", "trl", "datasets", "huggingface_hub"}


def pins(name: str) -> dict[str, str]:
    """Package and version of each line."""
    lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines)
    return found


@pytest.mark.parametrize("name", SETS)
def test_every_pin_lies_in_the_packages_range(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ranges = {wanted.name: wanted.specifier for wanted in map(Requirement, project["dependencies"])}
    pinned = pins(name)
    assert ranges.keys() - pinned.keys() == set()
    assert [each for each, range_ in ranges.items() if not range_.contains(pinned[each])] == []


def test_the_second_set_is_the_first_but_for_what_unsloth_wants() -> None:
    first, second = map(pins, SETS)
    assert second.keys() - first.keys() == {"unsloth", "unsloth_zoo"}
    assert {name for name in first if first[name] != second[name]} == OTHER_IN_THE_SECOND
