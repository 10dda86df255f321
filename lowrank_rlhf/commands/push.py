"""`push`: an exported folder to the hub."""

from pathlib import Path
from typing import Annotated

import typer

from lowrank_rlhf.commands.common import echo
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.export.push import list_upload, send
from lowrank_rlhf.run.progress import memory


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that `export` wrote.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Made on the hub if it is not there.")],
    yes: Annotated[bool, typer.Option("--yes", help="Send it; without this the files are only listed.")] = False,
    public: Annotated[bool, typer.Option("--public", help="For everybody to see; private by default.")] = False,
) -> None:
    """Send an export to the Hugging Face hub (--yes), or list it.

    Only files that `export` writes are sent. You must be logged in (`hf auth login`, or the variable HF_TOKEN): the
    token is read by the hub's own library, and never written or shown here. HF_ENDPOINT names a mirror.

    \b
    Examples:
      python -m lowrank_rlhf push my-model anna/my-model
      python -m lowrank_rlhf push my-model anna/my-model --yes
      python -m lowrank_rlhf push my-model anna/my-model --yes --public
    """
    if repository.count("/") != 1:
        raise UserError(f"{repository}: name the owner too: OWNER/NAME")
    upload = list_upload(folder)
    width = max(map(len, upload.files))
    for name in upload.files:
        echo(f"  {name:<{width}}  {memory((folder / name).stat().st_size)}")
    for name in upload.left_out:
        echo(f"  {name}: stays here, for it is nothing that `export` writes")
    to = f"{'public' if public else 'private'} repository {repository}"
    if yes:
        echo(f"sent to the {to}: {send(upload, repository, public)}")
    else:
        echo(f"{memory(upload.size)} would go to the {to}. Nothing was sent: read README.md, then add --yes")
