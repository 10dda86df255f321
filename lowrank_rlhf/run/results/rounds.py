"""Names of stages and files in the rounds of a run: plain in the first round, `round-2/ppo` in the second."""

import re
from pathlib import Path

from lowrank_rlhf.run.results import MARKS

SFT, SFT_ADAPTER = "sft", "adapters/sft"
"""Stage that the first round runs for all, and its output."""
_FOLDER = re.compile(r"round-([2-9]|[1-9]\d+)")


def prefix(number: int) -> str:
    """Return the beginning of all names in a round."""
    return "" if number == 1 else f"round-{number}/"


def split(name: str) -> tuple[int, str]:
    """Return the round and the plain name of a stage or file: `round-2/ppo` is (2, "ppo")."""
    folder, _, plain = name.partition("/")
    found = _FOLDER.fullmatch(folder)
    return (int(found[1]), plain) if found else (1, name)


def rounds_in(folder: Path) -> list[int]:
    """Return the rounds of which the folder has a file, the first one always."""
    begun = (path.name for path in folder.glob("round-*/") if any(inner.is_file() for inner in path.rglob("*")))
    found = map(_FOLDER.fullmatch, begun)
    return [1, *sorted(int(match[1]) for match in found if match)]


def stages_in(folder: Path) -> list[str]:
    """Return the names of all stages in these rounds, in the order in which they run."""
    return [
        f"{prefix(number)}{stage}" for number in rounds_in(folder) for stage in MARKS if number == 1 or stage != SFT
    ]
