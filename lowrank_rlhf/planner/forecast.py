"""The whole forecast of a run: stages, files, disk, memory and time, and the settings that would help."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.data.length_filter import check_lengths
from lowrank_rlhf.data.run_data import RunData, read_commits
from lowrank_rlhf.planner import disk
from lowrank_rlhf.planner.compute_cost import Amounts, amounts, work
from lowrank_rlhf.planner.machine import Machine, look
from lowrank_rlhf.planner.memory import Need, need
from lowrank_rlhf.planner.pace import Span, find_pace, whole
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import file_names
from lowrank_rlhf.sources.model_shape import Shape, find_shape
from lowrank_rlhf.sources.tokenizer import local_tokenizer
from lowrank_rlhf.stages import Stage


@dataclass(frozen=True)
class File:
    """A file or folder of the run; `size` in bytes, None where nothing tells it."""

    name: str
    size: float | None
    exists: bool


@dataclass(frozen=True)
class StageForecast:
    """What one stage will read, write and need."""

    stage: Stage
    reads: list[File]
    writes: list[File]
    span: Span | None
    need: Need | None


@dataclass(frozen=True)
class Help:
    """A setting that lowers the peak, and the peak with it, in bytes."""

    override: str
    peak: float


@dataclass(frozen=True)
class Forecast:
    """All stages, and what of them is still to do; sizes in bytes."""

    shape: Shape | None
    """None while the model is not on this machine: then memory, disk and time are unknown."""
    machine: Machine
    stages: list[StageForecast]
    room: disk.Room
    disk_needed: float | None
    peak: float | None
    time: Span | None
    helps: list[Help]

    @property
    def memory_fits(self) -> bool:
        """Not known to be too little."""
        return self.peak is None or self.peak <= self.machine.free

    @property
    def disk_fits(self) -> bool:
        """Writable, and not known to be too small."""
        return self.room.writable and self.room.free >= (self.disk_needed or disk.SMALL_FILES)


def forecast(config: Config, run_dir: RunDir, runs: Path, stages: Sequence[Stage], left: Sequence[str]) -> Forecast:
    """What the run's stages need; `left` names those that are still to do.

    Raises `UserError` where the data is bad, or too long for the model as far as its tokenizer is here.
    """
    shape, machine = find_shape(config.model), look(config.model)
    data = RunData(config, read_commits(run_dir))
    if any(stage.name in left and "model" in stage.settings for stage in stages):
        check_lengths(data, config)
    counts = amounts(config, run_dir, data, local_tokenizer(config.model))
    pace = find_pace(run_dir, runs)
    told = [_stage(stage, config, run_dir, shape, counts, machine, pace.span) for stage in stages]
    waiting = [entry for entry in told if entry.stage.name in left]
    needs = [entry.need.peak for entry in waiting if entry.need]
    spans = [entry.span for entry in waiting if entry.span]
    return Forecast(
        shape=shape,
        machine=machine,
        stages=told,
        room=disk.room(run_dir.path),
        disk_needed=_disk_needed(waiting, config, shape) if shape else None,
        peak=max(needs) if needs else None,
        time=whole(spans) if spans else None,
        helps=_helps(config, shape, counts, machine, left) if shape else [],
    )


def shown_peaks(config: Config, run_dir: RunDir, data: RunData) -> dict[str, float]:
    """Bytes that each stage's done-mark will show, by its name; nothing where the model's shape is not known."""
    shape, machine = find_shape(config.model), look(config.model)
    if shape is None:
        return {}
    counts = amounts(config, run_dir, data, local_tokenizer(config.model))
    needs = {stage: need(stage, config, shape, counts, machine.device) for stage in config.stages}
    return {stage: found.shown for stage, found in needs.items() if found}


def peak(config: Config, shape: Shape, counts: Amounts, machine: Machine, stages: Sequence[str]) -> float:
    """The most memory that any of those stages needs, in bytes."""
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
        span=span(stage.name, work(stage.name, config, counts, shape), machine) if shape else None,
        need=need(stage.name, config, shape, counts, machine.device) if shape else None,
    )


def _disk_needed(waiting: Sequence[StageForecast], config: Config, shape: Shape) -> float:
    written = sum(file.size or 0 for entry in waiting for file in entry.writes)
    working = max((disk.working_size(entry.stage, config, shape) for entry in waiting), default=0)
    return written + working + (disk.SMALL_FILES if waiting else 0)


def _helps(config: Config, shape: Shape, counts: Amounts, machine: Machine, left: Sequence[str]) -> list[Help]:
    """Single settings that lower the peak by at least a fiftieth, the most helpful first; then all of them together."""
    now = peak(config, shape, counts, machine, left)
    found = []
    for key, value in _candidates(config, shape):
        then = peak(changed(config, {key: value}), shape, counts, machine, left)
        if then < 0.98 * now:
            found.append((then, key, value))
    found.sort(key=lambda entry: entry[0])
    helps = [Help(f"{key}={_yaml(value)}", then) for then, key, value in found]
    if len(found) > 1:
        together = changed(config, {key: value for _, key, value in found})
        helps.append(Help(" ".join(entry.override for entry in helps), peak(together, shape, counts, machine, left)))
    return helps


def _candidates(config: Config, shape: Shape) -> list[tuple[str, Any]]:
    """Settings that save memory, with values that leave the run what it is, or nearly."""
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
    """The config with other values at those dotted keys, checked as a whole."""
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
