"""`annotations`: people's rankings as files, and where a run keeps them."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from lowrank_rlhf.commands.common import RunArgument, RunsOption, echo, run_folder
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.files import write_atomic
from lowrank_rlhf.ranking.demonstrations import demonstrations_to_jsonl
from lowrank_rlhf.ranking.exchange import comparisons_to_jsonl, read_lines, to_jsonl
from lowrank_rlhf.ranking.merging import Merge
from lowrank_rlhf.ranking.place import COMMAND, STORE, Place, counted, place_of

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


def find_place(run: str, runs: Path) -> Place:
    """Where the run of that name, or that folder, keeps its answers to rank. Raises `UserError` if it has none yet."""
    known = [
        path for path in (runs / run, Path(run)) if any((path / name).is_file() for name in ("config.yaml", STORE))
    ]
    return place_of(known[0] if known else run_folder(run, runs))


@app.callback()
def annotations() -> None:
    """Take people's rankings to another program or machine, and back.

    \b
    Examples:
      python -m lowrank_rlhf annotations export people people.jsonl
      python -m lowrank_rlhf annotations import people people.jsonl
    """


@app.command("export")
def export(
    run: RunArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The JSONL file to write.")],
    runs: RunsOption = Path("runs"),
    comparisons: Annotated[
        bool, typer.Option("--comparisons", help="One row per comparison, with its texts, as `rank.dataset` takes it.")
    ] = False,
    demonstrations: Annotated[
        bool, typer.Option("--demonstrations", help="Only the answers that people wrote, as `data.prompts` takes them.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Write all prompts, answers, rankings and skips of a run to one file.

    The file is all that `annotations import` needs, here or on another machine. docs/annotations.md explains its rows.

    \b
    Examples:
      python -m lowrank_rlhf annotations export people people.jsonl
      python -m lowrank_rlhf annotations export people pairs.jsonl --comparisons
      python -m lowrank_rlhf annotations export people written.jsonl --demonstrations
    """
    if comparisons and demonstrations:
        raise UserError("--comparisons and --demonstrations are two files: give one at a time")
    contents = find_place(run, runs).store.contents()
    text = (comparisons_to_jsonl if comparisons else demonstrations_to_jsonl if demonstrations else to_jsonl)(contents)
    if comparisons and not text:
        raise UserError(f"{run}: nobody has preferred an answer to another yet: there are no comparisons to export")
    if demonstrations and not text:
        raise UserError(f"{run}: nobody has written an answer yet: there are no demonstrations to export")
    if file.exists() and not force:
        raise UserError(f"{file} exists already; name another file, or replace it with --force")
    try:
        write_atomic(file, text)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None
    current = contents.current()
    withdrawn = sum(verdict.withdrawn for verdict in contents.verdicts)
    replaced = len(contents.verdicts) - withdrawn - len(current)
    people = len({ranking.annotator for ranking in current})
    if demonstrations:
        echo(f"wrote {file}: {counted(text.count(chr(10)), 'demonstration')}; to learn from them in sft:")
        echo(f"  {COMMAND} run CONFIG data.prompts={shlex.quote(str(file))}")
        return
    if comparisons:
        echo(f"wrote {file}: {counted(text.count(chr(10)), 'comparison')} from {counted(len(current), 'ranking')}")
        return
    echo(
        f"wrote {file}: {counted(len(contents.prompts), 'prompt')}, {counted(len(contents.answers), 'answer')}, "
        f"{counted(len(current), 'ranking')} by {counted(people, 'annotator')}, {counted(len(contents.skips), 'skip')}"
    )
    if replaced:
        echo(f"also {counted(replaced, 'ranking')} that a later one of the same annotator replaced")
    if withdrawn:
        echo(f"also {counted(withdrawn, 'ranking')} taken back")


@app.command("import")
def import_(
    run: RunArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An export, bare rankings, or exported comparisons.")],
    runs: RunsOption = Path("runs"),
    new: Annotated[
        bool, typer.Option("--new", help="Make a folder of that name for labelling alone, without a run.")
    ] = False,
) -> None:
    """Add rankings from a file: all of them, or none if a line is wrong.

    What is here already is not added twice. A ranking from the file counts as later than one by the same annotator
    that is here. With --new the file's prompts and answers come along, to be ranked on this machine.

    \b
    Examples:
      python -m lowrank_rlhf annotations import people from_anna.jsonl
      python -m lowrank_rlhf annotations import for_anna people.jsonl --new
    """
    lines = read_lines(file)
    place = _new_place(runs / run) if new else find_place(run, runs)
    try:
        plan = place.store.merge(lines, new_items=place.settings is None)
    except UserError:
        if new:  # nothing is in it: the next try must find its name free
            for leftover in place.folder.iterdir():
                leftover.unlink()
            place.folder.rmdir()
        raise
    for sentence in _report(plan):
        echo(sentence)
    echo(place.summary())


def _new_place(folder: Path) -> Place:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{folder} exists already; import into it without --new, or choose another name") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from None
    return place_of(folder, new=True)


def _report(plan: Merge) -> list[str]:
    new = sum(not verdict.withdrawn for verdict in plan.verdicts)
    taken_back = len(plan.verdicts) - new + len(plan.withdrawn)
    sentences = [f"{counted(new, 'ranking')} new, {plan.known} already here"]
    if plan.prompts:
        sentences.append(f"{counted(len(plan.prompts), 'prompt')} with {counted(len(plan.answers), 'answer')} new")
    if plan.replaced:
        sentences.append(f"{counted(plan.replaced, 'ranking')} here replaced by a later one of the same annotator")
    if taken_back:
        sentences.append(f"{counted(taken_back, 'ranking')} taken back, kept for the record")
    if plan.skips:
        sentences.append(f"{counted(len(plan.skips), 'skip')} new")
    return sentences
