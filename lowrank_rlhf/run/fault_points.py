"""Named points around every write, at which a test can kill this process. Enabled by an environment variable.

`LOWRANK_RLHF_FAULTS=kill:17` kills this process at the 17th point that it passes; nothing is flushed or
saved. `LOWRANK_RLHF_FAULTS=list:FILE` writes the names of the points that it passes into that file, one per line.
`tools/faults.py` tries all of them.
"""

import os
from itertools import count
from pathlib import Path

import psutil

VARIABLE = "LOWRANK_RLHF_FAULTS"
_passed = count(1)


def point(name: str) -> None:
    """Mark a state of the disk, such as `adapters/sft: moved`; kill this process if the test asks for it."""
    if asked := os.environ.get(VARIABLE):
        action, _, argument = asked.partition(":")
        if action == "list":
            with Path(argument).open("a", encoding="utf-8") as file:
                file.write(f"{name}\n")
        elif action == "kill" and next(_passed) == int(argument):
            psutil.Process().kill()
