"""`run`, `validate` and `sweep`: the pipeline from the terminal."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowrank_rlhf.commands.common import (
    ConfigArgument,
    JsonOption,
    OverridesArgument,
    RunsOption,
    checked_config,
    echo,
    print_rewards,
    run_folder,
)
from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.data.requirements import check_local_data
from lowrank_rlhf.errors import Stopped, UserError
from lowrank_rlhf.pipeline import multi_process, pipeline, redo_stages
from lowrank_rlhf.pipeline.preflight import require_processes
from lowrank_rlhf.run import distributed, launcher
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress, StopRequest
from lowrank_rlhf.sweep.grid import Combination, Sweep, make_sweep
from lowrank_rlhf.sweep.launch import Launched, command_of, share_of
from lowrank_rlhf.sweep.results import cells, header
from lowrank_rlhf.sweep.runner import complete, exit_code, run_sweep
from lowrank_rlhf.sweep.share import shared_stages

STOPPED_AT_ONCE = "Stopped at once. The same command resumes from the last checkpoint."


def run(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    runs: RunsOption = Path("runs"),
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    redo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE",
            help="Repeat this stage and those that depend on it; may be given several times. Earlier results are kept "
            "until all of these stages are done again.",
        ),
    ] = None,
    undo_redo: Annotated[
        bool,
        typer.Option("--undo-redo", help="Restore the results that an unfinished --redo set aside, and exit."),
    ] = False,
) -> None:
    """Run the pipeline, or resume it.

    The same command skips finished stages and resumes an interrupted one. Ctrl-C saves the work and stops.
    `schema KEY` explains a setting, `schema ppo` a section. With several GPUs,
    `accelerate launch -m lowrank_rlhf run ...` distributes the work (docs/more_than_one_gpu.md).

    \b
    Examples:
      python -m lowrank_rlhf run quickstart
      python -m lowrank_rlhf run my.yaml name=gentle ppo.kl_coef=0.1
      python -m lowrank_rlhf run my.yaml --until reward
      python -m lowrank_rlhf run my.yaml --redo ppo
    """
    if launcher.is_main_process():
        loaded = checked_config(config, overrides)
    else:  # the main process sends the data
        loaded = load_config(Path(config), overrides or ())
    if undo_redo:
        run_dir = RunDir(run_folder(loaded.name, runs))
        back = redo_stages.undo(run_dir)
        echo(f"Restored: {', '.join(back)}" if back else f"{run_dir.path}: no earlier results to restore")
        return
    require_processes(loaded)
    launched = launcher.is_launched()
    try:
        with distributed.join() as group, Progress() as progress:
            if not group.is_main:
                multi_process.follow(loaded, group)
                return
            if launched:
                progress.say(_shared_by(group.processes))
            run_dir = pipeline.run(loaded, runs, until=until, redo=redo or [], progress=progress, group=group)
            multi_process.dismiss(group)
    except KeyboardInterrupt:
        raise Stopped(STOPPED_AT_ONCE) from None
    last = run_dir.mark(until or pipeline.stages_of(loaded)[-1].name)
    message, report = last.result.message if last else None, None
    latest = run_dir.rounds[-1]
    if latest.mark("evaluate") is None and latest.artifact("report.html").exists():  # evaluate's own message names it
        report = f"The report so far, to open in a browser:\n  {latest.artifact('report.html')}"
    for text in filter(None, (message, report, f"Run folder: {run_dir.path}")):
        echo(text)


def _shared_by(processes: int) -> str:
    if processes == 1:
        return "one process does the work of this run"
    return f"{processes} processes share the work of this run"


def validate(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Check a config, and list every mistake in it.

    Also checks that its judges, data files and adapters exist, and that the inputs of each stage come from an earlier
    stage or exist in the run folder. Data files are read as the run would; data sets of a hub are not, and are
    named; lengths are checked if the model's tokenizer is on this machine.

    \b
    Examples:
      python -m lowrank_rlhf validate my.yaml
      python -m lowrank_rlhf validate quickstart ppo.steps=100 --json
    """
    try:
        loaded = checked_config(config, overrides, runs)
        not_read, notes = check_local_data(loaded)
    except UserError as error:
        if not as_json:
            raise
        print(json.dumps({"ok": False, "errors": str(error).splitlines()}))
        raise typer.Exit(int(error.exit_code)) from None
    names = [stage.name for stage in pipeline.stages_of(loaded)]
    if as_json:
        found = {"ok": True, "name": loaded.name, "stages": names, "not_read": not_read, "notes": notes}
        print(json.dumps(found | {"rewards": list(loaded.ppo.rewards)}))
        return
    print(f"ok: {', '.join(names)}")
    print_rewards(loaded)
    for note in notes:
        echo(f"  {note}")
    if not_read:
        print(f"not read: {', '.join(not_read)}. `run` downloads and reads them")


def sweep(
    config: ConfigArgument,
    settings: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE,VALUE...", help="Settings, each with one or more values.")
    ],
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the runs and the stages they share.")] = False,
    parallel: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Runs at once, each on a GPU or its share of the cores."),
    ] = 1,
    only: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Execute only run N, for one task of a cluster's job array.")
    ] = None,
) -> None:
    """Run every combination of the given values.

    Commas separate values, except inside [a, b] and quotes. Each run has its own folder and resumes if it was stopped.
    A stage that another run finished with the same settings and inputs is copied, not repeated. If a run fails, the
    sweep records it, continues, and exits with code 1. The table and the plot of the gold score against sqrt(KL) are
    written to a folder with the sweep's name, next to the runs. With --parallel each run writes to a log there;
    `status` shows how far it is.

    \b
    Examples:
      python -m lowrank_rlhf sweep quickstart ppo.kl_coef=0.02,0.05,0.1 seed=1,2,3
      python -m lowrank_rlhf sweep my.yaml lora.rank=8,16 ppo.steps=20 name=ranks --dry-run
      python -m lowrank_rlhf sweep my.yaml seed=1,2,3,4 --parallel 2
      python -m lowrank_rlhf sweep my.yaml "lora.target_modules=[q_proj, v_proj],all-linear" --json
    """
    if only is not None and (dry_run or parallel > 1):
        raise UserError(f"--only {only} executes one run: leave out {'--dry-run' if dry_run else '--parallel'}")
    planned = make_sweep(config, settings)
    if dry_run:
        _print_plan(planned, runs, as_json)
        return

    def say(text: str) -> None:
        Console(stderr=as_json).print(text, markup=False, highlight=False, soft_wrap=True)

    def start(combination: Combination, place: int) -> Launched:
        command = command_of(config, combination.overrides, runs)
        environment = share_of(place, parallel, combination.config.model.device != "cpu")
        log = runs / planned.name / f"{combination.config.name}.log" if parallel > 1 else None
        if log:
            say(f"  output: {log}")
        return Launched(command, environment, log, quiet=as_json)

    try:
        with StopRequest() as stop:
            record = run_sweep(planned, runs, start, say, stop, parallel, only and only - 1)
    except KeyboardInterrupt:
        raise Stopped(STOPPED_AT_ONCE) from None
    if as_json:
        print(json.dumps(record, indent=2))
    else:
        _print_results(planned, record["runs"], None if only else runs / planned.name)
    if code := exit_code(record):
        raise typer.Exit(int(code))


def _print_plan(planned: Sweep, runs: Path, as_json: bool) -> None:
    """Print the runs in order, and the stages that each will copy from an earlier one."""
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


def _print_results(planned: Sweep, rows: list[dict], folder: Path | None) -> None:
    """Print the table, each run's message, and the folder of table and plot if they were written."""
    table = Table(*header(planned), box=None, pad_edge=False)
    for entry in rows:
        table.add_row(*map(Text, cells(planned, entry)))
    Console().print(table)
    for entry in rows:
        if entry.get("message"):
            echo(f"{entry['run']}: {entry['message']}")
    if folder:
        echo(f"The table and the plot are in {folder}")
