"""`dashboard`: the web interface."""

from pathlib import Path
from typing import Annotated

import typer

from lowrank_rlhf.commands.common import RunsOption, ServedAsOption, echo
from lowrank_rlhf.dashboard.access.password import PASSWORD_VARIABLE, password_for


def dashboard(
    runs: RunsOption = Path("runs"),
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help=f"Address to listen on. Any other than the default requires {PASSWORD_VARIABLE}."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    served_as: ServedAsOption = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the page in a browser.")] = False,
) -> None:
    """Open the dashboard: start and watch runs, rank, chat, export.

    Runs are separate processes: closing the page or stopping this command does not stop them. To listen on any address
    other than this computer's own, set the environment variable LOWRANK_RLHF_PASSWORD to a password of 12 or more
    characters, which the page asks for. If the variable is set, the page asks for the password on this computer, too.

    \b
    Examples:
      python -m lowrank_rlhf dashboard
      python -m lowrank_rlhf dashboard --runs /data/runs --port 8000
      LOWRANK_RLHF_PASSWORD=... python -m lowrank_rlhf dashboard --host 192.168.1.5
      LOWRANK_RLHF_PASSWORD=... python -m lowrank_rlhf dashboard --served-as rlhf.example.org
    """
    password = password_for(host, bool(served_as))
    from lowrank_rlhf.dashboard.app import serve  # gradio takes seconds to import
    from lowrank_rlhf.dashboard.server import Address

    def on_ready(url: str) -> None:
        echo(f"Dashboard: {url}\nPress Ctrl-C to close it. Runs continue in the background.")

    serve(runs, Address(host, port, served_as or ()), password, open_browser=not no_browser, on_ready=on_ready)
