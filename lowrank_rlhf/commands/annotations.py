"""`annotations`: people's rankings as files, and where a run keeps them."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lowrank_rlhf.commands.common import RunArgument, RunsOption, echo, run_folder
from lowrank_rlhf.commands.terminal.ranking_text import project_summary
from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.preferences.contents import Contents, SavedRanking
from lowrank_rlhf.preferences.export_file import comparisons_to_jsonl, demonstrations_to_jsonl, to_jsonl
from lowrank_rlhf.preferences.import_file import read_rows
from lowrank_rlhf.preferences.import_plan import ImportPlan
from lowrank_rlhf.preferences.project import COMMAND, STORE, Project, counted, open_project, run_command
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import write_atomic
from lowrank_rlhf.run.records import Prompt, Ranking, Sample, read_jsonl

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


def _folder(run: str, runs: Path) -> Path:
    known = [
        path for path in (runs / run, Path(run)) if any(os.path.isfile(path / name) for name in ("config.yaml", STORE))
    ]
    return known[0] if known else run_folder(run, runs)


def find_project(run: str, runs: Path) -> Project:
    """Where the run of that name, or that folder, keeps its answers to rank. Raises `UserError` if it has none yet."""
    return open_project(_folder(run, runs))


def _ranked(run: str, runs: Path) -> tuple[Contents, list[Ranking]]:
    """Return the annotations of a run and the rankings that count.

    A run ranked by a judge or a data set has the rankings of its stage rank; all of them count. Raises `UserError`
    if the run has none yet.
    """
    folder = _folder(run, runs)
    config = folder / "config.yaml"
    if not config.is_file() or load_config(config).rank.source == "human":
        contents = find_project(run, runs).store.contents()
        return contents, contents.current()
    run_dir = RunDir(folder)
    if run_dir.mark("rank") is None:
        raise UserError(
            f"{folder}: its answers are not ranked yet. This does it:\n  {run_command(folder)} --until rank"
        )
    rankings = list(read_jsonl(run_dir.artifact("rankings.jsonl"), Ranking))
    contents = Contents(
        prompts=tuple(read_jsonl(run_dir.artifact("prompts.jsonl"), Prompt)),
        answers=tuple(read_jsonl(run_dir.artifact("answers.jsonl"), Sample)),
        history=tuple(SavedRanking(ranking=ranking) for ranking in rankings),
    )
    return contents, rankings


@app.callback()
def annotations() -> None:
    """Export and import rankings.

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
    """Write a run's prompts, answers, rankings and skips to a file.

    Rankings by people, a judge or a data set are exported alike.

    The file is all that `annotations import` needs, here or on another machine. docs/annotations.md explains its rows.

    \b
    Examples:
      python -m lowrank_rlhf annotations export people people.jsonl
      python -m lowrank_rlhf annotations export people pairs.jsonl --comparisons
      python -m lowrank_rlhf annotations export people written.jsonl --demonstrations
    """
    if comparisons and demonstrations:
        raise UserError("--comparisons and --demonstrations are two files: give one at a time")
    contents, rankings = _ranked(run, runs)
    if comparisons:
        text = comparisons_to_jsonl(contents, rankings)
    else:
        text = demonstrations_to_jsonl(contents) if demonstrations else to_jsonl(contents)
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
    if demonstrations:
        echo(f"wrote {file}: {counted(text.count(chr(10)), 'demonstration')}; to learn from them in sft:")
        echo(f"  {COMMAND} run CONFIG data.prompts={shlex.quote(str(file))}")
        return
    if comparisons:
        echo(f"wrote {file}: {counted(text.count(chr(10)), 'comparison')} from {counted(len(rankings), 'ranking')}")
        return
    annotators = len({ranking.annotator for ranking in rankings})
    echo(
        f"wrote {file}: {counted(len(contents.prompts), 'prompt')}, {counted(len(contents.answers), 'answer')}, "
        f"{counted(len(rankings), 'ranking')} by {counted(annotators, 'annotator')}, "
        f"{counted(len(contents.skips), 'skip')}"
    )
    for sentence in _beside(contents, rankings):
        echo(sentence)


def _beside(contents: Contents, rankings: Sequence[Ranking]) -> list[str]:
    """What to know of the verdicts that are no current rankings."""
    current, withdrawn = len(contents.current()), sum(verdict.withdrawn for verdict in contents.history)
    sentences = []
    if replaced := len(rankings) - current:
        sentences.append(
            f"{counted(replaced, 'ranking')} by the same annotator as a later one of the same prompt: `import` counts "
            "the last alone, and --comparisons writes the pairs of all"
        )
    if replaced := len(contents.history) - withdrawn - len(rankings):
        sentences.append(f"also {counted(replaced, 'ranking')} that a later one of the same annotator replaced")
    if withdrawn:
        sentences.append(f"also {counted(withdrawn, 'ranking')} taken back")
    return sentences


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
    lines = read_rows(file)
    project = _new_project(runs / run) if new else find_project(run, runs)
    try:
        plan = project.store.merge(lines, new_items=project.settings is None)
    except UserError:
        if new:  # nothing is in it: the next try must find its name free
            for leftover in project.folder.iterdir():
                leftover.unlink()
            project.folder.rmdir()
        raise
    for sentence in _report(plan):
        echo(sentence)
    echo(project_summary(project))


def _new_project(folder: Path) -> Project:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{folder} exists already; import into it without --new, or choose another name") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from None
    return open_project(folder, new=True)


def _report(plan: ImportPlan) -> list[str]:
    new = sum(not verdict.withdrawn for verdict in plan.rankings)
    taken_back = len(plan.rankings) - new + len(plan.withdrawn)
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
