"""Comparison of several runs as the page that `compare --html` writes."""

import sys
from collections.abc import Sequence

from lowrank_rlhf.dashboard import jobs
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.reports.run_comparison import ComparedRun, comparison_page, read_run
from lowrank_rlhf.run.directory import RunDir

SEPARATOR = ","
"""Between the names of runs in an address; no run of a page has it in its name."""


def read_runs(runs: RunsFolder, names: Sequence[str]) -> list[ComparedRun]:
    """Read the runs. Raises `UserError` for fewer than two, a run without settings, and damaged files."""
    chosen = list(dict.fromkeys(names))
    if len(chosen) < 2:
        raise UserError("name two or more runs")
    found = []
    for name in chosen:
        path = runs.path(name)
        if not (path / "config.yaml").is_file():
            raise UserError(f"{name}: run not found, or without settings yet")
        found.append(read_run(RunDir(path), name))
    return found


def page_of(runs: RunsFolder, names: Sequence[str]) -> str:
    """Return the comparison as HTML in both languages. Raises `UserError` as `read_runs` does."""
    return comparison_page(read_runs(runs, names))


def version(runs: RunsFolder, names: Sequence[str]) -> int:
    """Return a number that changes when a stage of one of the runs is finished or redone."""
    folders = [each.path / "done" for name in names for each in RunDir(runs.path(name)).rounds]
    return sum(folder.stat().st_mtime_ns for folder in folders if folder.is_dir())


def command(runs: RunsFolder, names: Sequence[str]) -> str:
    """Return the command that writes the same page."""
    words = ["compare", *names, "--runs", str(runs.folder), "--html", "comparison.html"]
    return jobs.as_typed([sys.executable, "-m", "lowrank_rlhf", *words])
