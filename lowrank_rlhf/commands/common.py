"""What the commands share: arguments with one meaning everywhere, printing, and finding a run."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.messages import Key, suggestion
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import ExitCode, UserError, visible
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.pipeline.preflight import problems
from lowrank_rlhf.run.directory import RunDir

EXIT_CODES = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "a stage failed its own checks, or doctor found something wrong",
    ExitCode.BAD_INPUT: "config, data or command line is wrong",
    ExitCode.STALE: "a finished stage was made from another config or other inputs",
    ExitCode.CANNOT_FIT: "the plan does not fit this machine",
    ExitCode.WAITING: "people must rank answers before the run can go on",
    ExitCode.LOCKED: "another process holds the run",
    ExitCode.NOT_FINITE: "training gave NaN or infinities again after a roll-back; the batch is saved",
    ExitCode.STOPPED: "stopped by Ctrl-C or SIGTERM; the work is saved",
}
EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {text}" for code, text in EXIT_CODES.items())
"""End of the help of the root command."""

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or a preset's name.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that replace the file's, such as ppo.kl_coef=0.1."),
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or its folder.")]
RunsOption = Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="The folder that holds the runs.")]


def _host_names(names: list[str] | None) -> list[str] | None:
    for name in names or ():
        if not re.fullmatch(r"[A-Za-z0-9.-]+", name):
            raise UserError(
                f"--served-as {name}: a host name alone, such as rank.example.org, without https:// or a port"
            )
    return names


ServedAsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--served-as",
        metavar="NAME",
        callback=_host_names,
        help="A host name that a proxy has for the page; may be repeated.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def echo(text: str) -> None:
    """Print a text as it is, without markup and without folding long lines; it steers no terminal."""
    Console().print(visible(text), markup=False, highlight=False, soft_wrap=True)


def checked_config(config: str, overrides: Sequence[str] | None, runs: Path | None = None) -> Config:
    """Load the config. Raises `UserError` with every mistake in it.

    With the folder of the runs, it also checks that each stage's inputs are in the run or made by another stage.
    """

    def check(valid: Config) -> list[tuple[Key, str]]:
        before = pipeline.missing_inputs(valid, RunDir(runs / valid.name)) if runs else []
        return [*before, *problems(valid)]

    return load_config(Path(config), overrides or (), check)


def run_folder(run: str, runs: Path) -> Path:
    """The folder of the run of that name, or the folder itself.

    Raises `UserError` with the runs that exist, and for one of a newer version.
    """
    for folder in (runs / run, Path(run)):
        if os.path.isfile(folder / "config.yaml"):
            RunDir(folder).check_version()
            return folder
    names = sorted(path.parent.name for path in runs.glob("*/config.yaml"))
    listing = f"The runs are: {', '.join(names)}." if names else "There are none yet."
    raise UserError(f'no run "{run}" in {runs}. {listing}{suggestion(run, names)}')
