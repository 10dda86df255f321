"""`run`, `validate` and `status`: the pipeline from the terminal."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowrank_rlhf.commands.common import (
    ConfigArgument,
    JsonOption,
    OverridesArgument,
    RunArgument,
    RunsOption,
    checked_config,
    echo,
    run_folder,
)
from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.errors import Stopped, UserError
from lowrank_rlhf.pipeline import multi_process, pipeline
from lowrank_rlhf.run import distributed
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress, duration, figure, memory


def run(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    runs: RunsOption = Path("runs"),
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop when this stage is done.")] = None,
    redo: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="Make this stage again, and all built on it; may be repeated."),
    ] = None,
) -> None:
    """Run the pipeline, or resume it.

    The same command skips finished stages and resumes a stopped one. Ctrl-C saves the work and stops.
    `schema KEY` explains a setting, `schema ppo` all of a section. With several GPUs,
    `accelerate launch -m lowrank_rlhf run ...` distributes the work (docs/more_than_one_gpu.md).

    \b
    Examples:
      python -m lowrank_rlhf run quickstart
      python -m lowrank_rlhf run my.yaml name=gentle ppo.kl_coef=0.1
      python -m lowrank_rlhf run my.yaml --until reward
      python -m lowrank_rlhf run my.yaml --redo ppo
    """
    loaded = checked_config(config, overrides)
    try:
        with distributed.join() as group, Progress() as progress:
            if not group.is_main:
                multi_process.follow(loaded, RunDir(runs / loaded.name), group)
                return
            run_dir = pipeline.run(loaded, runs, until=until, redo=redo or [], progress=progress, group=group)
            multi_process.dismiss(group)
    except KeyboardInterrupt:
        raise Stopped("Stopped at once. The same command goes on from the last checkpoint.") from None
    last = run_dir.mark(until or pipeline.stages_of(loaded)[-1].name)
    message, report = last.result.message if last else None, None
    if run_dir.mark("evaluate") is None and run_dir.artifact("report.html").exists():  # evaluate's own message names it
        report = f"The report so far, to open in a browser:\n  {run_dir.artifact('report.html')}"
    for text in filter(None, (message, report, f"The run is in {run_dir.path}")):
        echo(text)


def validate(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Check a config, and name every mistake in it.

    Also whether its judges, data files and adapters are there, and whether each stage has what it reads, from a stage
    before it or from what the run has done already. No data is read.

    \b
    Examples:
      python -m lowrank_rlhf validate my.yaml
      python -m lowrank_rlhf validate quickstart ppo.steps=100 --json
    """
    try:
        loaded = checked_config(config, overrides, runs)
    except UserError as error:
        if not as_json:
            raise
        print(json.dumps({"ok": False, "errors": str(error).splitlines()}))
        raise typer.Exit(int(error.exit_code)) from None
    names = [stage.name for stage in pipeline.stages_of(loaded)]
    print(json.dumps({"ok": True, "name": loaded.name, "stages": names}) if as_json else f"ok: {', '.join(names)}")


def status(
    run: RunArgument,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Show where each stage of a run stands.

    \b
    Examples:
      python -m lowrank_rlhf status quickstart
      python -m lowrank_rlhf status /data/runs/mine --json
    """
    run_dir = RunDir(run_folder(run, runs))
    rows = [_row(run_dir, status) for status in pipeline.plan(load_config(run_dir.path / "config.yaml"), run_dir)]
    if as_json:
        print(json.dumps({"run": str(run_dir.path), "stages": rows}, indent=2))
        return
    Console().print(_table(rows))
    for row in rows:
        for line in row["why"]:
            echo(f"{row['stage']}: {line}")


def _row(run_dir: RunDir, status: pipeline.StageStatus) -> dict[str, Any]:
    mark = run_dir.mark(status.stage.name)
    return {
        "stage": status.stage.name,
        "state": status.state,
        "why": list(status.why),
        "seconds": mark and mark.seconds,
        "peak_memory_bytes": mark and mark.peak_memory_bytes,
        "summary": mark.result.model_dump(exclude_unset=True) if mark else {},
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("stage", "state", "time", "peak memory", "figures", box=None, pad_edge=False)
    for row in rows:
        numbers = {key: value for key, value in row["summary"].items() if type(value) in (int, float)}
        table.add_row(
            row["stage"],
            row["state"],
            "" if row["seconds"] is None else duration(row["seconds"]),
            "" if row["peak_memory_bytes"] is None else memory(row["peak_memory_bytes"]),
            Text(", ".join(figure(name, value) for name, value in list(numbers.items())[:4])),
        )
    return table
