"""Command line. Large libraries are imported only after the config is parsed."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from lowrank_rlhf import __version__
from lowrank_rlhf.commands import (
    chat,
    compare,
    dashboard,
    data,
    evaluate,
    export,
    getting_started,
    plan,
    run,
    status,
)
from lowrank_rlhf.commands.common import EPILOG
from lowrank_rlhf.commands.ranking import annotations, label, team
from lowrank_rlhf.errors import ERROR_FILE, UserError, error_record
from lowrank_rlhf.run import launcher
from lowrank_rlhf.run.files import write_json_atomic
from lowrank_rlhf.run.heartbeat import ProcessLost

_LONGEST = 200
"""Characters shown of a file's name, which may be too long for any disk."""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command and exit with its code.

    A `UserError`, or an `OSError` about a file, is printed as a message without a traceback. If a launcher started
    several processes, only the main one prints.
    """
    try:
        with launcher.silence_other_processes():
            app()
    except UserError as error:
        _exit_with(error)
    except OSError as error:
        if error.filename is None:
            raise
        _exit_with(UserError(f"{str(error.filename)[:_LONGEST]}: cannot be used: {error.strerror}"))


def _exit_with(error: UserError) -> NoReturn:
    if path := os.environ.get(ERROR_FILE):  # the page started this command
        with suppress(OSError):  # its folder may be gone; the message is printed
            write_json_atomic(Path(path), error_record(error))
    with launcher.silence_other_processes():
        Console(stderr=True).print(Text(str(error), style="red"), soft_wrap=True)
    if isinstance(error, ProcessLost):  # an operation with a process that does not answer would not let Python end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(error.exit_code))
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
    if (launched := launcher.launched_processes()) > 1 and context.invoked_subcommand not in ("run", "plan"):
        raise UserError(
            f"{context.invoked_subcommand}: launched in {launched} processes, but only `run` distributes its work; "
            "start it without the launcher"
        )


_COMMANDS = (
    run.run,
    plan.plan,
    run.validate,
    status.status,
    run.sweep,
    compare.compare,
    dashboard.dashboard,
    label.label,
    chat.chat,
    evaluate.evaluate,
    export.export,
    export.push,
    getting_started.doctor,
    getting_started.schema,
)
for command in _COMMANDS:
    app.command()(command)
annotations.app.command("invite")(team.invite)
annotations.app.command("checks")(team.checks)
annotations.app.command("disputes")(team.list_disagreements)
annotations.app.command("decide")(team.decide_order)
for name, group in {"presets": getting_started.presets_app, "data": data.app, "annotations": annotations.app}.items():
    app.add_typer(group, name=name)
