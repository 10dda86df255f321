"""Change the code by one realistic mistake at a time, and run the tests that should fail.

`tools/mutations/*.toml` list the mistakes by area. Each entry has an id, the `file`, the text `old` that occurs exactly
once in it, the text `new` that replaces it, the `tests` to run, and for a mutation that survives by design `survives`,
the reason. Tests run in a copy of the checkout, first without mutations: a selection that fails then shows nothing.

    python tools/mutate.py                   all mutations
    python tools/mutate.py --only 'maths/*'  those whose id `area/name`, or file, matches the pattern
    python tools/mutate.py --changed         those of files that differ from `main`
    python tools/mutate.py --list            print them without running a test

The exit code is 1 if a mutation without an explanation survives, an old text does not occur exactly once, or a
selection fails without a mutation.
"""

import argparse
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "tools" / "mutations"
DIED, SURVIVED, EXPLAINED, NOT_APPLIED, FAILS_WITHOUT = (
    "died", "survived", "survived, explained", "does not apply", "fails without a mutation",
)  # fmt: skip
BAD = (SURVIVED, NOT_APPLIED, FAILS_WITHOUT)
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "trl", "datasets", "gradio", "pytest")
SECONDS = 600
"""Limit of one selection of tests; a mutation that exceeds it died."""


@dataclass(frozen=True)
class Mutation:
    """One mistake in one file."""

    id: str
    """`area/name`, the name of the table and the key in it."""
    file: str
    old: str
    new: str
    tests: str
    """Test files or node ids, separated by spaces."""
    survives: str = ""
    """Reason why no test can notice it; empty for a mutation that must die."""

    def problem(self, root: Path = ROOT) -> str | None:
        """Return why the mutation cannot be applied to the files of a checkout, or None."""
        path = root / self.file
        count = path.read_text(encoding="utf-8").count(self.old) if path.is_file() else 0
        if count != 1:
            return f"{self.file}: the old text occurs {count} times instead of once: {self.old!r}"
        return f"{self.id}: old and new text are equal" if self.old == self.new else None

    def apply(self, root: Path) -> str:
        """Replace the old text in a checkout; return the file's contents before."""
        before = (root / self.file).read_text(encoding="utf-8")
        write(root / self.file, before.replace(self.old, self.new))
        return before


def write(path: Path, text: str) -> None:
    """Write a source file, with a later time than before: bytecode in the cache is found by time and size."""
    later = path.stat().st_mtime + 10
    path.write_text(text, encoding="utf-8")
    os.utime(path, (later, later))


def read_mutations(tables: Path = TABLES) -> list[Mutation]:
    """Return the mutations of all tables, in their order."""
    return [
        Mutation(id=f"{path.stem}/{name}", **entry)
        for path in sorted(tables.glob("*.toml"))
        for name, entry in tomllib.loads(path.read_text(encoding="utf-8")).items()
    ]


def copy_checkout(target: Path) -> None:
    """Copy every file that git tracks or would add; ignored ones, such as runs and environments, are left out."""
    for name in _git("ls-files", "--cached", "--others", "--exclude-standard"):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def preload() -> None:
    """Import the libraries that most tests need, so that each test process starts with them."""
    for name in LIBRARIES:
        importlib.import_module(name)


def passes(tests: str, root: Path, seconds: float = SECONDS) -> bool:
    """Run a selection of tests in a checkout, in a process of its own that ends at the first failure."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # no session of its own: Linux would schedule that beside this one, whatever its niceness
        os._exit(_run_tests(tests, root))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)  # with the processes that the tests started
    os.waitpid(child, 0)
    return False


def _run_tests(tests: str, root: Path) -> int:
    """Run pytest in this process, in a checkout, with the output in a file beside it; return the exit code."""
    with root.with_suffix(".log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(root)
    os.environ["PYTHONPATH"] = str(root)
    sys.path[:] = [str(root), *(entry for entry in sys.path if not Path(entry).is_relative_to(ROOT / "tools"))]
    import pytest

    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests.split()]))


def outcome(mutation: Mutation, root: Path, sound: dict[str, bool]) -> str:
    """Return what becomes of a mutation; `sound` remembers which selections pass without one."""
    if problem := mutation.problem(root):
        print(f"  {problem}")
        return NOT_APPLIED
    if mutation.tests not in sound:
        sound[mutation.tests] = passes(mutation.tests, root)
    if not sound[mutation.tests]:
        return FAILS_WITHOUT
    before = mutation.apply(root)
    try:
        survived = passes(mutation.tests, root)
    finally:
        write(root / mutation.file, before)
    return (EXPLAINED if mutation.survives else SURVIVED) if survived else DIED


def run(mutations: Sequence[Mutation]) -> dict[str, str]:
    """Run all mutations, one at a time, in a temporary copy of the checkout; return the outcomes by id."""
    outcomes: dict[str, str] = {}
    selections = {mutation.tests for mutation in mutations}
    with TemporaryDirectory(prefix="mutate-") as folder:
        root = Path(folder) / "checkout"
        copy_checkout(root)
        preload()
        # All selections at once; one by one later if that fails.
        sound = dict.fromkeys(selections, True) if passes(" ".join(sorted(selections)), root, SECONDS * 10) else {}
        for number, mutation in enumerate(mutations, 1):
            start = time.monotonic()
            found = outcomes[mutation.id] = outcome(mutation, root, sound)
            print(f"{number}/{len(mutations)} {mutation.id}: {found} ({time.monotonic() - start:.0f} s)", flush=True)
    return outcomes


def summary(mutations: Sequence[Mutation], outcomes: dict[str, str]) -> str:
    """Return a row for each area and one for all, then the mutations that did not die."""
    counts = Counter((area, outcomes[mutation.id]) for mutation in mutations for area in (_area(mutation), "all"))
    lines = [f"{'area':12}{'mutations':>10}{'died':>8}{'explained':>11}{'bad':>6}{'score':>9}"]
    for area in (*dict.fromkeys(map(_area, mutations)), "all"):
        died, explained = counts[area, DIED], counts[area, EXPLAINED]
        bad = sum(counts[area, kind] for kind in BAD)
        total = died + explained + bad
        lines.append(f"{area:12}{total:10}{died:8}{explained:11}{bad:6}{100 * died / total:8.1f}%")
    for mutation in mutations:
        if (found := outcomes[mutation.id]) != DIED:
            lines.append(f"{mutation.id}: {found}" + (f": {mutation.survives}" if mutation.survives else ""))
    return "\n".join(lines)


def main() -> int:
    """Parse the command line, run, print and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="pattern of ids (area/name) or of files")
    parser.add_argument("--list", action="store_true", help="print the mutations, run no test")
    parser.add_argument("--changed", action="store_true", help="only files that differ from the branch main")
    given = parser.parse_args()
    changed: set[str] = set()
    if given.changed:  # a clone has no branch main
        changed = {*_git("diff", "--name-only", "main"), *_git("ls-files", "--others", "--exclude-standard")}
    chosen = [
        mutation
        for mutation in read_mutations()
        if (fnmatch(mutation.id, given.only) or fnmatch(mutation.file, given.only))
        and (mutation.file in changed or not given.changed)
    ]
    if given.list:
        for mutation in chosen:
            print(f"{mutation.id}  {mutation.file}  {mutation.problem() or mutation.tests}")
        return int(any(mutation.problem() for mutation in chosen))
    if not chosen:
        print("no mutation selected")
        return 0
    outcomes = run(chosen)
    print(summary(chosen, outcomes))
    return int(any(found in BAD for found in outcomes.values()))


def _area(mutation: Mutation) -> str:
    return mutation.id.partition("/")[0]


def _git(*arguments: str) -> list[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


if __name__ == "__main__":
    sys.exit(main())
