"""The kill points: off unless asked for, counted when asked; and a few real kills of a whole tiny run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from platforms import posix

ROOT = Path(__file__).parents[2]
POINTS = """
from lowrank_rlhf.run import fault_points as faults
for name in ("one", "two", "three"):
    faults.point(name)
    print(name, flush=True)
"""


def passed(fault: str | None) -> subprocess.CompletedProcess[str]:
    """Three points in a process of their own."""
    asked = {"LOWRANK_RLHF_FAULTS": fault} if fault else {}
    environment = {name: value for name, value in os.environ.items() if name != "LOWRANK_RLHF_FAULTS"} | asked
    return subprocess.run([sys.executable, "-c", POINTS], capture_output=True, text=True, cwd=ROOT, env=environment)


def test_without_the_variable_nothing_happens() -> None:
    done = passed(None)
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\ntwo\nthree\n", "")


@posix
def test_the_process_dies_of_sigkill_at_the_point_of_that_number() -> None:
    done = passed("kill:2")
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "one\n")


def test_the_points_are_listed_in_their_order(tmp_path: Path) -> None:
    assert passed(f"list:{tmp_path / 'points'}").stdout == "one\ntwo\nthree\n"
    assert (tmp_path / "points").read_text() == "one\ntwo\nthree\n"


def test_a_run_killed_at_write_points_of_six_kinds_ends_as_one_that_was_not() -> None:
    """`make faults` takes every kind of point; the exit code is 1 unless all are survived."""
    command = [sys.executable, "tools/faults.py", "--points", "6"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.stdout.splitlines()[-1] == "6 of 6 kill points survived", done.stdout
    assert done.returncode == 0
