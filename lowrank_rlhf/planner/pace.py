"""How long stages take: from what they have to compute, and from how fast this machine has been before."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.run_data import RunData, hub_sources, read_commits
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.planner.compute_cost import amounts, work
from lowrank_rlhf.planner.machine import Machine, same_machine
from lowrank_rlhf.run.directory import RunDir, read_json
from lowrank_rlhf.sources.model_shape import Shape, find_shape
from lowrank_rlhf.stages import STAGES

LOADING_SECONDS = 10.0
"""Importing torch and its friends, and quantising a small base: once per command."""
_RUNS_ASKED = 5


@dataclass(frozen=True)
class Span:
    """About so many seconds, hardly less than `low` or more than `high`; `source` says what tells it."""

    about: float
    low: float
    high: float
    source: str


@dataclass(frozen=True)
class Pace:
    """Seconds per operation of each stage that has run here before, and of all of them together."""

    stages: dict[str, float]
    overall: float | None

    def span(self, stage: str, operations: float, machine: Machine) -> Span | None:
        """The time of a stage with so much work; None for one that runs no model."""
        if not operations:
            return None
        if stage in self.stages:
            return _span(operations * self.stages[stage], 1.5, "this stage in earlier runs here")
        if self.overall is not None:
            return _span(operations * self.overall, 2, "other stages of earlier runs here")
        return _span(operations / machine.operations, 3, "the speed of small matrix products, a rough guess")


def whole(spans: list[Span]) -> Span:
    """One after another, with the loading of the model."""
    about, low, high = (sum(getattr(span, end) for span in spans) for end in ("about", "low", "high"))
    extra = LOADING_SECONDS if spans else 0.0
    return Span(about + extra, low + extra, high + 2 * extra, ", ".join(sorted({span.source for span in spans})))


def find_pace(run_dir: RunDir, runs: Path) -> Pace:
    """From the done-marks of this run and of the newest others in the runs folder that were made on this machine.

    Others whose data is on the hub are passed over: to count it, it would be fetched.
    """
    folders = [path.parent for path in runs.glob("*/done")]
    newest = sorted(folders, key=lambda folder: (folder / "done").stat().st_mtime, reverse=True)[:_RUNS_ASKED]
    own = [run_dir.path] if (run_dir.path / "done").is_dir() else []
    seconds: dict[str, float] = defaultdict(float)
    operations: dict[str, float] = defaultdict(float)
    for folder in dict.fromkeys([*own, *newest]):
        for stage, (took, amount) in _taken(RunDir(folder), may_fetch=folder in own).items():
            seconds[stage] += took
            operations[stage] += amount
    total = sum(operations.values())
    each = {stage: seconds[stage] / operations[stage] for stage in seconds}
    return Pace(each, sum(seconds.values()) / total if total else None)


def stage_work(config: Config, run_dir: RunDir, shape: Shape, data: RunData) -> dict[str, float]:
    """The work of every stage of a run."""
    counts = amounts(config, run_dir, data)
    return {stage.name: work(stage.name, config, counts, shape) for stage in STAGES}


def _taken(run_dir: RunDir, may_fetch: bool) -> dict[str, tuple[float, float]]:
    """Seconds and work of the run's finished stages; nothing if it is not from here, or cannot be read any more."""
    if not same_machine(read_json(run_dir.path / "env.json") or {}):
        return {}
    try:
        run_dir.check_version()
        config = load_config(run_dir.path / "config.yaml")
        if hub_sources(config) and not may_fetch:
            return {}
        shape = find_shape(config.model)
        operations = stage_work(config, run_dir, shape, RunData(config, read_commits(run_dir))) if shape else {}
        marks = {name: mark for name, amount in operations.items() if amount and (mark := run_dir.done(name))}
    except UserError:  # made by another version, or its data is gone
        return {}
    own = {name: mark for name, mark in marks.items() if "taken_from" not in mark}
    return {name: (float(mark["seconds"]), operations[name]) for name, mark in own.items()}


def _span(seconds: float, factor: float, source: str) -> Span:
    return Span(seconds, seconds / factor, seconds * factor, source)
