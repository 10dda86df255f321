"""`status`: the state of one run, or of all, once or until they end."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowrank_rlhf.commands.common import JsonOption, RunsOption, echo, print_rewards, run_folder
from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import duration, figure, memory


def status(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Name or folder of a run; all runs if left out.")
    ] = None,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat every two seconds until no process works.")] = False,
) -> None:
    """Show the state of the stages of a run, or of all runs.

    All runs are listed the newest first. With --watch a terminal is refreshed in place; elsewhere each change is a
    line. Ctrl-C ends the display, not the run.

    \b
    Examples:
      python -m lowrank_rlhf status
      python -m lowrank_rlhf status quickstart --watch
      python -m lowrank_rlhf status /data/runs/mine --json
    """
    if watch and as_json:
        raise UserError("--watch: --json prints once. Remove one of them")
    from lowrank_rlhf.commands.terminal import run_states  # the alarms' numpy takes a while to import

    if run is None:
        run_states.show_all(runs, as_json, watch)
        return
    folder = run_folder(run, runs)
    if watch:
        run_states.watch_one(folder, lambda: _table(_rows(folder)))
        return
    rows, config = _rows(folder), load_config(folder / "config.yaml")
    if as_json:
        print(json.dumps({"run": str(folder), "rewards": list(config.ppo.rewards), "stages": rows}, indent=2))
        return
    Console().print(_table(rows))
    print_rewards(config)
    for row in rows:
        for line in row["why"]:
            echo(f"{row['stage']}: {line}")


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Return a row for each stage of a run."""
    run_dir = RunDir(folder)
    return [_row(run_dir, status) for status in pipeline.plan(load_config(folder / "config.yaml"), run_dir)]


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
