"""The command line. The config is parsed before anything heavy is imported."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowrank_rlhf import __version__, pipeline
from lowrank_rlhf.artifacts import RunDir
from lowrank_rlhf.config import reference
from lowrank_rlhf.config.loading import load_config, preset_folder, preset_names, preset_path
from lowrank_rlhf.config.messages import suggestion
from lowrank_rlhf.doctor import examine
from lowrank_rlhf.errors import ExitCode, Stopped, UserError
from lowrank_rlhf.progress import Progress, duration, figure, memory

EXIT_CODES = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "a stage failed its own checks, or doctor found something wrong",
    ExitCode.BAD_INPUT: "config, data or command line is wrong",
    ExitCode.STALE: "a finished stage was made from another config or other inputs",
    ExitCode.CANNOT_FIT: "the plan does not fit this machine",
    ExitCode.WAITING: "people must rank answers before the run can go on",
    ExitCode.LOCKED: "another process holds the run",
    ExitCode.STOPPED: "stopped by Ctrl-C or SIGTERM; the work is saved",
}
_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {text}" for code, text in EXIT_CODES.items())

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
presets_app = typer.Typer(rich_markup_mode=None)
app.add_typer(presets_app, name="presets")

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a preset's name.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that replace the file's, such as ppo.kl_coef=0.1."),
]
RunsOption = Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="The folder that holds the runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Entry point: runs the command and exits with its code; a `UserError` is a message, not a traceback."""
    try:
        app()
    except UserError as error:
        Console(stderr=True).print(Text(str(error), style="red"), soft_wrap=True)
        sys.exit(int(error.exit_code))


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lowrank_rlhf {__version__}")
        raise typer.Exit


@app.callback(epilog=_EPILOG)
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """RLHF on one small machine: fine-tune, sample, rank, train a reward model, PPO, evaluate.

    \b
    Examples:
      python -m lowrank_rlhf presets
      python -m lowrank_rlhf run quickstart
      python -m lowrank_rlhf status quickstart
    """


@app.command(epilog=_EPILOG)
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
    """Run the pipeline, or go on with it.

    The same command skips what is done and resumes what is not; a Ctrl-C stops it where the work can be saved.

    \b
    Examples:
      python -m lowrank_rlhf run quickstart
      python -m lowrank_rlhf run my.yaml name=gentle ppo.kl_coef=0.1
      python -m lowrank_rlhf run my.yaml --until reward
      python -m lowrank_rlhf run my.yaml --redo ppo
    """
    loaded = load_config(Path(config), overrides or [])
    try:
        with Progress() as progress:
            run_dir = pipeline.run(loaded, runs, until=until, redo=redo or [], progress=progress)
    except KeyboardInterrupt:
        raise Stopped("Stopped at once. The same command goes on from the last checkpoint.") from None
    last = run_dir.done(until or pipeline.stages_of(loaded)[-1].name) or {}
    for text in filter(None, (last.get("summary", {}).get("message"), f"The run is in {run_dir.path}")):
        _print(text)


@app.command(epilog=_EPILOG)
def validate(config: ConfigArgument, overrides: OverridesArgument = None, as_json: JsonOption = False) -> None:
    """Check a config, and name every mistake in it.

    \b
    Examples:
      python -m lowrank_rlhf validate my.yaml
      python -m lowrank_rlhf validate quickstart ppo.steps=100 --json
    """
    try:
        loaded = load_config(Path(config), overrides or [])
    except UserError as error:
        if not as_json:
            raise
        print(json.dumps({"ok": False, "errors": str(error).splitlines()}))
        raise typer.Exit(int(error.exit_code)) from None
    names = [stage.name for stage in pipeline.stages_of(loaded)]
    print(json.dumps({"ok": True, "name": loaded.name, "stages": names}) if as_json else f"ok: {', '.join(names)}")


@app.command(epilog=_EPILOG)
def status(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or its folder.")],
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Show where each stage of a run stands.

    \b
    Examples:
      python -m lowrank_rlhf status quickstart
      python -m lowrank_rlhf status /data/runs/mine --json
    """
    run_dir = RunDir(_run_folder(run, runs))
    rows = [_row(run_dir, standing) for standing in pipeline.plan(load_config(run_dir.path / "config.yaml"), run_dir)]
    if as_json:
        print(json.dumps({"run": str(run_dir.path), "stages": rows}, indent=2))
        return
    Console().print(_table(rows))
    for row in rows:
        for line in row["why"]:
            _print(f"{row['stage']}: {line}")


@presets_app.callback(invoke_without_command=True, epilog=_EPILOG)
def presets(context: typer.Context) -> None:
    """List the ready-made configs.

    \b
    Examples:
      python -m lowrank_rlhf presets
      python -m lowrank_rlhf presets show quickstart
      python -m lowrank_rlhf presets copy quickstart my.yaml
    """
    if context.invoked_subcommand:
        return
    names = preset_names()
    if not names:
        raise UserError(f"there are no presets in {preset_folder()}")
    for name in names:
        print(f"{name:<{max(map(len, names))}}  {_first_comment(preset_path(name))}".rstrip())


@presets_app.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a preset.

    \b
    Examples:
      python -m lowrank_rlhf presets show quickstart
    """
    print(preset_path(name).read_text(encoding="utf-8"), end="")


@presets_app.command()
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="Default: NAME.yaml, here.")] = None,
) -> None:
    """Copy a preset to a file of your own.

    A file that exists is not replaced.

    \b
    Examples:
      python -m lowrank_rlhf presets copy quickstart
      python -m lowrank_rlhf presets copy quickstart my.yaml
    """
    text = preset_path(name).read_text(encoding="utf-8")
    target = file or Path(f"{name}.yaml")
    try:
        with target.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UserError(f"{target} exists already; name another file") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from None
    print(f"wrote {target}")


@app.command(epilog=_EPILOG)
def doctor(runs: RunsOption = Path("runs"), as_json: JsonOption = False) -> None:
    """Check versions, memory, disk and devices, and say how to mend what is wrong.

    The output names no user, path or key: it is safe to paste into an issue. Exit code 1 if something is wrong.

    \b
    Examples:
      python -m lowrank_rlhf doctor
      python -m lowrank_rlhf doctor --json
    """
    findings = examine(runs)
    if as_json:
        print(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            _print(f"{'!' if finding.mend else ' '} {finding.what:<{width}}  {finding.found}")
            if finding.mend:
                _print(f"  {'':<{width}}  -> {finding.mend}")
    if any(finding.mend for finding in findings):
        raise typer.Exit(int(ExitCode.FAILED))


@app.command(epilog=_EPILOG)
def schema(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="A page to read instead of a JSON schema.")] = False,
) -> None:
    """Print every setting: as a JSON schema for editors, or as a page.

    \b
    Examples:
      python -m lowrank_rlhf schema > config.schema.json
      python -m lowrank_rlhf schema --markdown
    """
    print(reference.markdown() if as_markdown else reference.json_schema(), end="")


def _print(text: str) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def _run_folder(run: str, runs: Path) -> Path:
    for folder in (runs / run, Path(run)):
        if (folder / "config.yaml").is_file():
            return folder
    names = sorted(path.parent.name for path in runs.glob("*/config.yaml"))
    listing = f"The runs are: {', '.join(names)}." if names else "There are none yet."
    raise UserError(f'no run "{run}" in {runs}. {listing}{suggestion(run, names)}')


def _row(run_dir: RunDir, standing: pipeline.Standing) -> dict[str, Any]:
    mark = run_dir.done(standing.stage.name) or {}
    return {
        "stage": standing.stage.name,
        "state": standing.state,
        "why": list(standing.why),
        "seconds": mark.get("seconds"),
        "peak_memory_bytes": mark.get("peak_memory_bytes"),
        "summary": mark.get("summary", {}),
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


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")
