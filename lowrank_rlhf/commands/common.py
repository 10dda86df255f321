"""Shared parts of the commands: arguments and options, exit codes, printing, finding a run."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.config.messages import Key, suggestion
from lowrank_rlhf.config.rewards import weighted_sum
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import ExitCode, UserError, visible
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.pipeline.preflight import problems
from lowrank_rlhf.run.directory import RunDir

EXIT_CODES = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "a stage failed its own checks, doctor found a problem, or a run of a sweep failed",
    ExitCode.BAD_INPUT: "config, data or command line is invalid",
    ExitCode.STALE: "a finished stage is stale: its config or inputs have changed",
    ExitCode.CANNOT_FIT: "the plan does not fit this machine",
    ExitCode.WAITING: "people must rank answers before the run can resume",
    ExitCode.LOCKED: "another process is using the run",
    ExitCode.NOT_FINITE: "NaN or infinity: in the model, or in training again after a rollback (the batch is saved)",
    ExitCode.STOPPED: "stopped by Ctrl-C or SIGTERM; the work is saved",
}
EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {text}" for code, text in EXIT_CODES.items())
"""Epilog of the root command's help."""

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file, or name of a preset.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that override the file's, such as ppo.kl_coef=0.1."),
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Name or folder of a run.")]
RunsOption = Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="Folder of all runs.")]


def _host_names(names: list[str] | None) -> list[str] | None:
    for name in names or ():
        if not re.fullmatch(r"[A-Za-z0-9.-]+", name):
            raise UserError(
                f"--served-as {name}: must be a host name, such as rank.example.org, without https:// or a port"
            )
    return names


ServedAsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--served-as",
        metavar="NAME",
        callback=_host_names,
        help="Host name of the page behind a proxy; may be given several times.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def echo(text: str) -> None:
    """Print a text without markup or line wrapping, its control characters escaped."""
    Console().print(visible(text), markup=False, highlight=False, soft_wrap=True)


def print_rewards(config: Config) -> None:
    """Print the sum that the policy is trained on, unless it is the reward model alone."""
    if config.ppo.rewards:
        echo(f"rewards: {weighted_sum(config.ppo.rewards)}")


def checked_config(config: str, overrides: Sequence[str] | None, runs: Path | None = None) -> Config:
    """Load a config and check it on this machine. Raises `UserError` that lists all mistakes.

    With `runs`, the folder of all runs, also checks that the inputs of each stage exist or are made by another stage.
    The config of a run folder that was copied or renamed by hand is refused, unless `overrides` set the name: the
    command would work on the run that the config names.
    """

    def check(valid: Config) -> list[tuple[Key, str]]:
        before = pipeline.missing_inputs(valid, RunDir(runs / valid.name)) if runs else []
        return [*before, *problems(valid)]

    loaded, folder = load_config(Path(config), overrides or (), check), Path(config).resolve().parent
    named = any(override.startswith("name=") for override in overrides or ())
    if (folder / "events.jsonl").is_file() and folder.name != loaded.name and not named:
        raise UserError(
            f'{config}: the config names the run "{loaded.name}", but its folder is "{folder.name}". '
            f"To work on this folder, add name={folder.name} --runs {Path(config).parent.parent}"
        )
    return loaded


def run_folder(run: str, runs: Path) -> Path:
    """Return the folder of a run, given by name or as a folder.

    Raises `UserError` with the names of existing runs if there is no such run, and for a run of a newer version.
    """
    for folder in (runs / run, Path(run)):
        if os.path.isfile(folder / "config.yaml"):
            RunDir(folder).check()
            return folder
        if os.path.isdir(folder / "config.yaml"):
            raise UserError(f"{folder / 'config.yaml'}: expected a YAML file, got a folder")
    names = sorted(path.parent.name for path in runs.glob("*/config.yaml"))
    listing = f"Existing runs: {', '.join(names)}." if names else "There are no runs yet."
    raise UserError(f'run "{run}" not found in {runs}. {listing}{suggestion(run, names)}')
