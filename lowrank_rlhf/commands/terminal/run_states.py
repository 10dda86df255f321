"""States of runs in the terminal: all of them as a table, and a display that follows them until they end."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lowrank_rlhf.commands.common import echo
from lowrank_rlhf.dashboard.run_status import RunStatus, StatusReader
from lowrank_rlhf.dashboard.runs_folder import RunsFolder
from lowrank_rlhf.dashboard.tabs.runs_html import last_figure, state_line
from lowrank_rlhf.dashboard.tail import JsonlTails
from lowrank_rlhf.errors import visible
from lowrank_rlhf.reports.alarms import Alarm

_SECONDS, _SECONDS_BETWEEN_LINES = 2.0, 5.0
_LANGUAGE = "en"


def show_all(runs: Path, as_json: bool, watch: bool) -> None:
    """Print the states of all runs in a folder, the newest first."""
    folder = RunsFolder(runs)

    def look() -> list[RunStatus]:
        return [folder.status(name) for name in folder.names()]

    found = look()
    if as_json:
        print(json.dumps([_as_json(run, folder.alarms([run])[run.name]) for run in found], indent=2))
    elif not found:
        echo(f"There are no runs in {runs} yet. Name their folder with --runs")
    elif watch:
        _watch(look, lambda seen: _table(seen, folder.alarms(seen)))
    else:
        Console().print(_table(found, folder.alarms(found)))


def watch_one(folder: Path, table: Callable[[], RenderableType]) -> None:
    """Show a run's `table` with its progress until no process works on it."""
    reader = StatusReader(JsonlTails())
    _watch(lambda: [reader.read(folder)], lambda found: Group(table(), Text(_line(found[0]))))


def _watch(look: Callable[[], Sequence[RunStatus]], show: Callable[[Sequence[RunStatus]], RenderableType]) -> None:
    """Show the runs again and again until no process works on any of them."""
    console, lines = Console(), dict[str, str]()
    in_place = console.is_terminal
    try:
        with Live(console=console, auto_refresh=False) if in_place else nullcontext() as live:
            while True:
                found = look()
                if live:
                    live.update(show(found), refresh=True)
                else:
                    now = {run.name: _line(run) for run in found}
                    for name in now:
                        if now[name] != lines.get(name):
                            print(now[name], flush=True)
                    lines = now
                if not any(run.busy for run in found):
                    return
                time.sleep(_SECONDS if in_place else _SECONDS_BETWEEN_LINES)
    except KeyboardInterrupt:
        return


def _line(run: RunStatus) -> str:
    """Return a line such as `quickstart: running · ppo 3/14 · about 2:01 left  score 0.31`."""
    return visible(
        "  ".join(part for part in (f"{run.name}: {state_line(run, _LANGUAGE)}", last_figure(run, _LANGUAGE)) if part)
    )


def _table(found: Sequence[RunStatus], alarms: Mapping[str, Sequence[Alarm]]) -> Table:
    table = Table("run", "state", "stages", "figure", "alarms", box=None, pad_edge=False)
    for run in found:
        stages = f"{len(run.done)}/{len(run.stages)}"
        count = str(len(alarms[run.name])) if alarms[run.name] else ""
        table.add_row(run.name, Text(state_line(run, _LANGUAGE)), stages, Text(last_figure(run, _LANGUAGE)), count)
    return table


def _as_json(run: RunStatus, alarms: Sequence[Alarm]) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "state": run.state,
        "stage": run.stage,
        "stages": list(run.stages),
        "done": run.done,
        "seconds_left": run.seconds_left,
        "figure": run.figure and {run.figure.key: run.figure.value},
        "alarms": [alarm.id for alarm in alarms],
    }
