"""`annotations invite` and the other commands of the owner of a ranking project."""

from pathlib import Path
from typing import Annotated

import typer

from lowrank_rlhf.commands.annotations import find_project
from lowrank_rlhf.commands.common import RunArgument, RunsOption, echo
from lowrank_rlhf.commands.label import LOOPBACK, PORT
from lowrank_rlhf.errors import UserError, visible
from lowrank_rlhf.preferences.labelling import annotator_name
from lowrank_rlhf.preferences.team.invitations import Invitations


def invite(
    run: RunArgument,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Annotator. Default: list all.")] = None,
    runs: RunsOption = Path("runs"),
    revoke: Annotated[bool, typer.Option("--revoke", help="Withdraw the person's link.")] = False,
    page: Annotated[
        str, typer.Option(metavar="URL", help="Address of the annotators' page, as annotators reach it.")
    ] = f"http://{LOOPBACK}:{PORT}",
) -> None:
    """Make a personal link to the page of `label --web`.

    The link logs in under this name without the password, and nobody else can use the name. It is printed once; only
    its hash is stored. A new link replaces the person's earlier one. --revoke ends the link and its sessions at once.

    \b
    Examples:
      python -m lowrank_rlhf annotations invite people anna
      python -m lowrank_rlhf annotations invite people anna --page https://rank.example.org
      python -m lowrank_rlhf annotations invite people anna --revoke
      python -m lowrank_rlhf annotations invite people
    """
    project = find_project(run, runs)
    invitations = Invitations(project.folder)
    if name is None:
        if revoke:
            raise UserError("--revoke requires NAME")
        for each in invitations.all():
            echo(f"{visible(each.annotator)}: {'revoked' if each.revoked else 'invited'}")
        return
    person = project.store.spelling(annotator_name(name))
    if not revoke:
        link = f"{page.rstrip('/')}/login#invite={invitations.invite(person)}"
        echo(f"link for {visible(person)}, printed only once; whoever has it ranks under this name:\n  {link}")
    elif invitations.revoke(person):
        echo(f"the link of {visible(person)} is revoked")
    else:
        raise UserError(f"{run}: {visible(person)!r} has no link")
