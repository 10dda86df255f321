"""`sweep`: several runs that differ in a few settings, one after another, and how they compare."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowrank_rlhf.commands.common import ConfigArgument, JsonOption, RunsOption, echo
from lowrank_rlhf.errors import Stopped
from lowrank_rlhf.run.progress import StopRequest
from lowrank_rlhf.sweep.grid import Combination, Sweep, make_sweep
from lowrank_rlhf.sweep.launch import Outcome, command_of, launch
from lowrank_rlhf.sweep.results import cells, header
from lowrank_rlhf.sweep.runner import complete, exit_code, run_sweep
from lowrank_rlhf.sweep.share import shared_stages


def sweep(
    config: ConfigArgument,
    settings: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE,VALUE...", help="Settings, each with one value or several.")
    ],
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the runs, and what they share.")] = False,
) -> None:
    """Run every combination of the given values, one by one.

    Commas separate values; inside [a, b] and quotes they don't. Each run has a folder of its own and goes on where it
    was stopped. A stage that another run made from the same settings and inputs is copied instead of made again. A run
    that fails is noted and the others go on; then the exit code is 1. The table and the plot of gold over sqrt(KL) are
    in the runs folder, under the sweep's name.

    \b
    Examples:
      python -m lowrank_rlhf sweep quickstart ppo.kl_coef=0.02,0.05,0.1 seed=1,2,3
      python -m lowrank_rlhf sweep my.yaml lora.rank=8,16 ppo.steps=20 name=ranks --dry-run
      python -m lowrank_rlhf sweep my.yaml "lora.target_modules=[q_proj, v_proj],all-linear" --json
    """
    planned = make_sweep(config, settings)
    if dry_run:
        _print_plan(planned, runs, as_json)
        return

    def say(text: str) -> None:
        Console(stderr=as_json).print(text, markup=False, highlight=False, soft_wrap=True)

    try:
        with StopRequest() as stop:

            def start(combination: Combination) -> Outcome:
                stop.check("every finished stage is saved")
                return launch(command_of(config, combination.overrides, runs), stop, quiet=as_json)

            record = run_sweep(planned, runs, start, say)
    except KeyboardInterrupt:
        raise Stopped("Stopped at once. The same command goes on from the last checkpoint.") from None
    if as_json:
        print(json.dumps(record, indent=2))
    else:
        _print_table(planned, record["runs"])
        echo(f"The table and the plot are in {runs / planned.name}")
    if code := exit_code(record):
        raise typer.Exit(int(code))


def _print_plan(planned: Sweep, runs: Path, as_json: bool) -> None:
    """The runs in order, and for each what it will take over from an earlier one."""
    shared = shared_stages([combination.config for combination in planned.combinations])
    entries = [
        {
            "run": combination.config.name,
            "settings": combination.settings,
            "done": complete(combination, runs),
            "shares": shares,
        }
        for combination, shares in zip(planned.combinations, shared, strict=True)
    ]
    if as_json:
        print(json.dumps({"name": planned.name, "runs": entries}, indent=2))
        return
    for combination, entry, shares in zip(planned.combinations, entries, shared, strict=True):
        echo(f"{combination.config.name}  ({combination.label}){'  done' if entry['done'] else ''}")
        for donor in dict.fromkeys(shares.values()):
            stages = ", ".join(stage for stage, of in shares.items() if of == donor)
            echo(f"  shares {stages} with {donor}")
    echo(f"{len(entries)} runs; their table and plot will be in {runs / planned.name}")


def _print_table(planned: Sweep, rows: list[dict]) -> None:
    table = Table(*header(planned), box=None, pad_edge=False)
    for entry in rows:
        table.add_row(*map(Text, cells(planned, entry)))
    Console().print(table)
    for entry in rows:
        if entry.get("message"):
            echo(f"{entry['run']}: {entry['message']}")
