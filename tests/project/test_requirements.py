"""The two sets of exact versions: both lie in the ranges of the package, and differ only where unsloth wants it."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from lowrank_rlhf.commands import getting_started

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


IMPORT_NAMES = {"ruamel.yaml": "ruamel", "PyYAML": "yaml", "markdown-it-py": "markdown_it"}
ONLY_RUN = {"accelerate"}  # TRL's trainers need it, and it launches several processes
OPTIONAL = {"xllamacpp", "modelscope", "unsloth", "wandb", "trackio", "tensorboard", "lm_eval", "crowdkit", "pandas"}


def imported() -> dict[str, Path]:
    """Return the top-level packages that the package imports, each with one of the files."""
    found: dict[str, Path] = {}
    for path in sorted((ROOT / "lowrank_rlhf").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                modules = [node.module]
            else:
                continue
            found |= {module.partition(".")[0]: path for module in modules}
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names | {"lowrank_rlhf"}}


def declared() -> set[str]:
    """Return the import names of the dependencies in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {Requirement(line).name for line in project["dependencies"]}
    return {IMPORT_NAMES.get(name, name) for name in names}


def test_every_import_is_declared() -> None:
    assert {name: path for name, path in imported().items() if name not in declared() | OPTIONAL} == {}


def test_every_dependency_is_imported() -> None:
    assert declared() - imported().keys() - ONLY_RUN == set()


def test_doctor_checks_what_pyproject_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {wanted.name: wanted.specifier for wanted in map(Requirement, project["dependencies"])}
    assert {each.name: each.specifier for each in getting_started._requirements()} == wanted
