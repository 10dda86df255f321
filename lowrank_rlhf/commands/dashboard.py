"""`dashboard`: the page in the browser."""

import os
from pathlib import Path
from typing import Annotated

import typer

from lowrank_rlhf.commands.common import RunsOption, ServedAsOption, echo
from lowrank_rlhf.dashboard.jobs import PASSWORD_VARIABLE
from lowrank_rlhf.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHORTEST_PASSWORD = 12


def dashboard(
    runs: RunsOption = Path("runs"),
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help=f"Where to listen. Another than this needs {PASSWORD_VARIABLE}.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    served_as: ServedAsOption = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Don't open the page in a browser.")] = False,
) -> None:
    """Open the page: start runs, watch them learn, rank answers, talk to the result, take it home.

    Training goes on in processes of its own: closing the page, or this command, stops none. On another address than
    this computer's own the page asks for the password in the environment variable LOWRANK_RLHF_PASSWORD, of 12
    characters or more; without one it does not start. With one it is asked for on this computer, too.

    \b
    Examples:
      python -m lowrank_rlhf dashboard
      python -m lowrank_rlhf dashboard --runs /data/runs --port 8000
      LOWRANK_RLHF_PASSWORD=... python -m lowrank_rlhf dashboard --host 192.168.1.5
      LOWRANK_RLHF_PASSWORD=... python -m lowrank_rlhf dashboard --served-as rlhf.example.org
    """
    password = checked_password(host, bool(served_as))
    from lowrank_rlhf.dashboard.app import serve

    try:
        serve(runs, host, port, password, open_browser=not no_browser, say=echo, names=served_as or ())
    except OSError as error:
        raise UserError(f"{host}:{port}: cannot be listened on: {error}; take another --port") from None


def checked_password(host: str, by_proxy: bool = False) -> str | None:
    """The password from the environment, if there is one. Raises `UserError` where there must be one, or a longer."""
    password = os.environ.get(PASSWORD_VARIABLE) or None
    if password is not None and len(password) < SHORTEST_PASSWORD:
        raise UserError(f"{PASSWORD_VARIABLE}: shorter than {SHORTEST_PASSWORD} characters; take a longer one")
    if password is None and (by_proxy or host not in LOOPBACK):
        option = "--served-as" if by_proxy else f"--host {host}"
        raise UserError(
            f"{option}: others could start programs on this computer through the page. Set {PASSWORD_VARIABLE} "
            f"to a password of {SHORTEST_PASSWORD} characters or more, or leave the option out and use an SSH tunnel"
        )
    return password
