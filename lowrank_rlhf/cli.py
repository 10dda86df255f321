"""The command line. The config is parsed before anything heavy is imported."""

import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from lowrank_rlhf import __version__
from lowrank_rlhf.commands import (
    about,
    annotations,
    chat,
    dashboard,
    data,
    evaluate,
    export,
    label,
    plan,
    presets,
    push,
    run,
    sweep,
)
from lowrank_rlhf.commands.common import EPILOG
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.run import distributed

_LONGEST = 200
"""So much of a file's name is shown: it may be too long for any disk."""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point: runs the command and exits with its code; a `UserError` is a message, not a traceback.

    So is a file or folder that cannot be used, wherever it is met. Of several processes that the launcher started only
    the main one speaks.
    """
    try:
        with distributed.silence_other_processes():
            app()
    except UserError as error:
        _refuse(error)
    except OSError as error:
        if error.filename is None:
            raise
        _refuse(UserError(f"{str(error.filename)[:_LONGEST]}: cannot be used: {error.strerror}"))


def _refuse(error: UserError) -> NoReturn:
    with distributed.silence_other_processes():
        Console(stderr=True).print(Text(str(error), style="red"), soft_wrap=True)
    sys.exit(int(error.exit_code))


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lowrank_rlhf {__version__}")
        raise typer.Exit


@app.callback(epilog=EPILOG)
def _root(
    context: typer.Context,
    _version: Annotated[
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
    if (launched := distributed.launched_processes()) > 1 and context.invoked_subcommand != "run":
        raise UserError(
            f"{context.invoked_subcommand}: was launched in {launched} processes, and only `run` shares "
            "its work out; start it without the launcher"
        )


_COMMANDS = (
    run.run,
    plan.plan,
    run.validate,
    run.status,
    sweep.sweep,
    dashboard.dashboard,
    label.label,
    chat.chat,
    evaluate.evaluate,
    export.export,
    push.push,
    about.doctor,
    about.schema,
)
for command in _COMMANDS:
    app.command()(command)
for name, group in {"presets": presets.app, "data": data.app, "annotations": annotations.app}.items():
    app.add_typer(group, name=name)
