"""Forecast of a run: stages, files, disk, memory and time, and settings that reduce its memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.run_data import RunData, read_commits
from lowrank_rlhf.planner import disk
from lowrank_rlhf.planner.assumed_data import PlannedAmounts, planned_amounts
from lowrank_rlhf.planner.compute_cost import Amounts, amounts, compute_cost
from lowrank_rlhf.planner.machine import Machine, find_machine
from lowrank_rlhf.planner.memory import Need, need
from lowrank_rlhf.planner.pace import Pace, Span, find_pace, whole
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import file_names
from lowrank_rlhf.sources.model_shape import Shape, check_experts, find_shape
from lowrank_rlhf.sources.tokenizer import local_tokenizer
from lowrank_rlhf.stages import Stage, of_rounds


@dataclass(frozen=True)
class File:
    """File or folder of the run; `size` in bytes, None if unknown."""

    name: str
    size: float | None
    exists: bool


@dataclass(frozen=True)
class StageForecast:
    """Inputs, outputs, time and memory of one stage."""

    stage: Stage
    reads: list[File]
    writes: list[File]
    span: Span | None
    need: Need | None


@dataclass(frozen=True)
class Help:
    """Settings that lower the peak, and the peak with them, in bytes."""

    settings: dict[str, Any]
    """Values by dotted key; several for all single settings combined."""
    peak: float

    @property
    def override(self) -> str:
        """Settings as arguments of the command line."""
        return " ".join(f"{key}={_yaml(value)}" for key, value in self.settings.items())


@dataclass(frozen=True)
class Forecast:
    """Forecast of all stages, and totals over the unfinished ones; sizes in bytes."""

    shape: Shape | None
    """None if the model is neither on this machine nor among the known ones; memory, disk and time are unknown then."""
    machine: Machine
    amounts: PlannedAmounts
    stages: list[StageForecast]
    disk: disk.DiskSpace
    disk_needed: float | None
    peak: float | None
    time: Span | None
    helps: list[Help]

    @property
    def model_is_here(self) -> bool:
        """True if the shape was read from the model's own files."""
        return self.shape is not None and self.shape.known_from is None

    @property
    def memory_fits(self) -> bool:
        """False if the peak is known to exceed the free memory."""
        return self.peak is None or self.peak <= self.machine.free

    @property
    def disk_fits(self) -> bool:
        """False if the folder is read-only or the disk is known to be too small."""
        return self.disk.writable and self.disk.free >= (self.disk_needed or disk.SMALL_FILES)


def forecast_run(
    config: Config,
    run_dir: RunDir,
    runs: Path,
    stages: Sequence[Stage],
    left: Sequence[str],
    other: Machine | None = None,
) -> Forecast:
    """Forecast the run's stages; `left` names the unfinished ones. `other` replaces this machine.

    Nothing is downloaded; amounts of data that is not on this machine are assumed.

    Raises:
        UserError: The data is invalid, or too long for the model (checked if its tokenizer is on this machine).
    """
    shape, machine = find_shape(config.model), other or find_machine(config.model)
    check_experts(config.model, shape)
    data = RunData(config, read_commits(run_dir), downloads=False)
    reads_data = any(stage.name in left and "model" in stage.settings for stage in stages)
    planned = planned_amounts(config, run_dir, data, left if reads_data else ())
    counts, pace = planned.counts, Pace({}, None) if other else find_pace(run_dir, runs)
    forecasts = [_stage(stage, config, run_dir, shape, counts, machine, pace.span) for stage in stages]
    waiting = [entry for entry in forecasts if entry.stage.name in left]
    needs = [entry.need.peak for entry in waiting if entry.need]
    spans = [entry.span for entry in waiting if entry.span]
    return Forecast(
        shape=shape,
        machine=machine,
        amounts=planned,
        stages=forecasts,
        disk=disk.disk_space(run_dir.path),
        disk_needed=_disk_needed(waiting, config, shape) if shape else None,
        peak=max(needs) if needs else None,
        time=whole(spans) if spans else None,
        helps=_helps(config, shape, counts, machine, left) if shape else [],
    )


def shown_peaks(config: Config, run_dir: RunDir, data: RunData) -> dict[str, float]:
    """Forecast the peak bytes in each stage's done mark, by stage; empty if the model's shape is unknown."""
    shape, machine = find_shape(config.model), find_machine(config.model)
    if shape is None:
        return {}
    counts = amounts(config, run_dir, data, local_tokenizer(config.model))
    names = [stage.name for stage in of_rounds(config.rounds) if stage.kind in config.active_stages]
    needs = {name: need(name, config, shape, counts, machine.device) for name in names}
    return {stage: found.shown for stage, found in needs.items() if found}


def peak(config: Config, shape: Shape, counts: Amounts, machine: Machine, stages: Sequence[str]) -> float:
    """Return the highest peak memory of the given stages, in bytes."""
    needs = [need(stage, config, shape, counts, machine.device) for stage in stages]
    return max((found.peak for found in needs if found), default=0.0)


def _stage(
    stage: Stage, config: Config, run_dir: RunDir, shape: Shape | None, counts: Amounts, machine: Machine, span: Any
) -> StageForecast:
    def file(name: str) -> File:
        path = run_dir.artifact(name)
        if path.exists():
            return File(name, _size(path), True)
        return File(name, disk.output_size(name, config, shape, counts) if shape else None, False)

    return StageForecast(
        stage=stage,
        reads=[file(name) for name in stage.reads],
        writes=[file(name) for name in stage.writes],
        span=span(stage.kind, compute_cost(stage.name, config, counts, shape), machine) if shape else None,
        need=need(stage.name, config, shape, counts, machine.device) if shape else None,
    )


def _disk_needed(waiting: Sequence[StageForecast], config: Config, shape: Shape) -> float:
    written = sum(file.size or 0 for entry in waiting for file in entry.writes)
    working = max((disk.working_size(entry.stage, config, shape) for entry in waiting), default=0)
    return written + working + (disk.SMALL_FILES if waiting else 0)


def _helps(config: Config, shape: Shape, counts: Amounts, machine: Machine, left: Sequence[str]) -> list[Help]:
    """Return single settings that lower the peak by at least 2 %, the best first, then all of them combined."""
    now = peak(config, shape, counts, machine, left)
    found = []
    for key, value in _candidates(config, shape):
        then = peak(changed(config, {key: value}), shape, counts, machine, left)
        if then < 0.98 * now:
            found.append((then, key, value))
    found.sort(key=lambda entry: entry[0])
    helps = [Help({key: value}, then) for then, key, value in found]
    if len(found) > 1:
        combined = {key: value for _, key, value in found}
        helps.append(Help(combined, peak(changed(config, combined), shape, counts, machine, left)))
    return helps


def _candidates(config: Config, shape: Shape) -> list[tuple[str, Any]]:
    """Return settings that save memory and hardly change the run's results."""
    model, below = config.model, shape.first_adapted(config.lora)
    half = (shape.layers - below) // 2
    fewer = max(shape.layers - half + 1, round(0.6 * shape.layers))  # above the lowest layer with an adapter
    candidates = [
        ("model.quantization", "nf4", model.quantization != "nf4"),
        ("model.merged_rollouts", False, model.merged_rollouts),
        ("model.gradient_checkpointing", True, not model.gradient_checkpointing),
        ("model.micro_batch_tokens", max(64, model.micro_batch_tokens // 2), model.micro_batch_tokens > 64),
        ("sample.batch_size", max(1, config.sample.batch_size // 2), config.sample.batch_size > 1),
        ("lora.last_layers", half, half > 0 and not config.reward.layers),
        ("reward.layers", fewer, (config.reward.layers or shape.layers) > fewer),
    ]
    return [(key, value) for key, value, applies in candidates if applies]


def changed(config: Config, settings: dict[str, Any]) -> Config:
    """Return the config with other values at the given dotted keys, validated as a whole."""
    values = config.model_dump(mode="json")
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        (values[section] if section else values)[name] = value
    return Config.model_validate(values)


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _size(path: Path) -> float:
    if path.is_dir():
        return sum((path / name).stat().st_size for name in file_names(path))
    return path.stat().st_size
