"""`presets`: the ready-made configs."""

from pathlib import Path
from typing import Annotated

import typer

from lowrank_rlhf.config.loading import preset_folder, preset_names, preset_path
from lowrank_rlhf.errors import UserError

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
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


@app.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a preset.

    \b
    Examples:
      python -m lowrank_rlhf presets show quickstart
    """
    print(preset_path(name).read_text(encoding="utf-8"), end="")


@app.command()
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


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")
