"""Stage durations, from the compute that each stage needs and the speed measured in earlier runs."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.run_data import RunData, read_commits
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.planner.compute_cost import amounts, compute_cost
from lowrank_rlhf.planner.machine import Machine, same_machine
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import read_json
from lowrank_rlhf.run.results.rounds import split
from lowrank_rlhf.sources.model_shape import Shape, find_shape
from lowrank_rlhf.stages import of_rounds

LOADING_SECONDS = 10.0
"""Importing torch and the libraries, and quantising a small base: once per command."""
_RUNS_ASKED = 5

Basis = Literal["same stage", "other stages", "machine speed", "assumed GPU speed"]
"""Measurement behind an estimate, the most reliable first."""
BASIS_TEXTS: dict[Basis, str] = {
    "same stage": "this stage in earlier runs here",
    "other stages": "other stages of earlier runs here",
    "machine speed": "the speed of small matrix products, a rough guess",
    "assumed GPU speed": "an assumed speed of 20 TFLOP/s, a rough guess",
}


@dataclass(frozen=True)
class Span:
    """Estimated seconds with a plausible range, and the measurements behind them."""

    about: float
    low: float
    high: float
    bases: tuple[Basis, ...]

    @property
    def source(self) -> str:
        """Measurements in words."""
        return ", ".join(sorted(BASIS_TEXTS[basis] for basis in self.bases))


@dataclass(frozen=True)
class Pace:
    """Seconds per operation, for each stage that has run here before and for all of them together."""

    stages: dict[str, float]
    overall: float | None

    def span(self, stage: str, operations: float, machine: Machine) -> Span | None:
        """Return the stage's estimated duration; None for a stage that runs no model."""
        if not operations:
            return None
        if stage in self.stages:
            return _span(operations * self.stages[stage], 1.5, "same stage")
        if self.overall is not None:
            return _span(operations * self.overall, 2, "other stages")
        return _span(
            operations / machine.operations, 3, "assumed GPU speed" if machine.device.cuda else "machine speed"
        )


def whole(spans: list[Span]) -> Span:
    """Add up the spans of consecutive stages, with the time to load the model."""
    about, low, high = (sum(getattr(span, end) for span in spans) for end in ("about", "low", "high"))
    extra = LOADING_SECONDS if spans else 0.0
    bases = {basis for span in spans for basis in span.bases}
    return Span(about + extra, low + extra, high + 2 * extra, tuple(basis for basis in BASIS_TEXTS if basis in bases))


def find_pace(run_dir: RunDir, runs: Path) -> Pace:
    """Measure the pace from the done marks of this run and of the newest runs in the folder made on this machine.

    Runs whose data is no longer on this machine are skipped: nothing is downloaded.
    """
    folders = [path.parent for path in runs.glob("*/done")]
    newest = sorted(folders, key=lambda folder: (folder / "done").stat().st_mtime, reverse=True)[:_RUNS_ASKED]
    own = [run_dir.path] if (run_dir.path / "done").is_dir() else []
    seconds: dict[str, float] = defaultdict(float)
    operations: dict[str, float] = defaultdict(float)
    for folder in dict.fromkeys([*own, *newest]):
        for stage, (took, amount) in _measured(RunDir(folder)).items():
            seconds[split(stage)[1]] += took
            operations[split(stage)[1]] += amount
    total = sum(operations.values())
    each = {stage: seconds[stage] / operations[stage] for stage in seconds}
    return Pace(each, sum(seconds.values()) / total if total else None)


def stage_costs(config: Config, run_dir: RunDir, shape: Shape, data: RunData) -> dict[str, float]:
    """Return the compute cost of every stage of a run, in forward operations."""
    counts = amounts(config, run_dir, data)
    return {stage.name: compute_cost(stage.name, config, counts, shape) for stage in of_rounds(config.rounds)}


def _measured(run_dir: RunDir) -> dict[str, tuple[float, float]]:
    """Return seconds and operations of the run's finished stages; empty for a run that is foreign or unreadable."""
    if not same_machine(read_json(run_dir.path / "env.json") or {}):
        return {}
    try:
        run_dir.check()
        config = load_config(run_dir.path / "config.yaml")
        shape = find_shape(config.model)
        data = RunData(config, read_commits(run_dir), downloads=False)
        operations = stage_costs(config, run_dir, shape, data) if shape else {}
        marks = {name: mark for name, amount in operations.items() if amount and (mark := run_dir.mark(name))}
    except UserError:  # made by another version, or its data is gone
        return {}
    own = {name: mark for name, mark in marks.items() if mark.taken_from is None}
    return {name: (mark.seconds, operations[name]) for name, mark in own.items()}


def _span(seconds: float, factor: float, basis: Basis) -> Span:
    return Span(seconds, seconds / factor, seconds * factor, (basis,))
