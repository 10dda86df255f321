"""`annotations`: export, import and exclusion of rankings."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lowrank_rlhf.commands.common import RunArgument, RunsOption, echo, run_folder
from lowrank_rlhf.commands.ranking.tool_files import ranked_tasks, tasks
from lowrank_rlhf.commands.terminal.ranking_text import project_summary
from lowrank_rlhf.config.loading import load_config
from lowrank_rlhf.errors import UserError, visible
from lowrank_rlhf.preferences.contents import Contents, SavedRanking
from lowrank_rlhf.preferences.exchange.files import Tool, read_tasks
from lowrank_rlhf.preferences.export_file import comparisons_to_jsonl, demonstrations_to_jsonl, to_jsonl
from lowrank_rlhf.preferences.import_file import read_rows
from lowrank_rlhf.preferences.import_plan import ImportPlan
from lowrank_rlhf.preferences.project import COMMAND, STORE, Project, counted, open_project, run_command
from lowrank_rlhf.preferences.team.exclusion import exclude as exclude_annotator
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
    """Open the annotation project of a run. Raises `UserError` if it has no answers to rank yet."""
    return open_project(_folder(run, runs))


def _ranked(run: str, runs: Path) -> tuple[Contents, list[Ranking]]:
    """Return the annotations of a run and its current rankings.

    If a judge or a data set ranks the run, the rankings are those of its stage rank, and all are current. Raises
    `UserError` if there are none yet.
    """
    folder = _folder(run, runs)
    config = folder / "config.yaml"
    if not config.is_file() or load_config(config).rank.source == "human":
        contents = find_project(run, runs).store.contents()
        return contents, contents.current()
    rounds = RunDir(folder).rounds
    run_dir = next((each for each in reversed(rounds) if each.mark("rank")), rounds[0])
    if run_dir.mark("rank") is None:
        raise UserError(f"{folder}: answers are not ranked yet. Rank them:\n  {run_command(folder)} --until rank")
    run_dir.check_outputs("prompts.jsonl", "answers.jsonl", "rankings.jsonl")
    rankings = list(read_jsonl(run_dir.artifact("rankings.jsonl"), Ranking))
    contents = Contents(
        prompts=tuple(read_jsonl(run_dir.artifact("prompts.jsonl"), Prompt)),
        answers=tuple(read_jsonl(run_dir.artifact("answers.jsonl"), Sample)),
        history=tuple(SavedRanking(ranking=ranking) for ranking in rankings),
    )
    return contents, rankings


@app.callback()
def annotations() -> None:
    """Export, import, check and decide rankings.

    \b
    Examples:
      python -m lowrank_rlhf annotations export people people.jsonl
      python -m lowrank_rlhf annotations import people people.jsonl
    """


@app.command("export")
def export(
    run: RunArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL file to write; with --format a JSON array.")],
    runs: RunsOption = Path("runs"),
    comparisons: Annotated[
        bool, typer.Option("--comparisons", help="Write one row per comparison, with its texts, for `rank.dataset`.")
    ] = False,
    demonstrations: Annotated[
        bool, typer.Option("--demonstrations", help="Write only the answers that annotators wrote, for `data.prompts`.")
    ] = False,
    tool: Annotated[
        Tool | None, typer.Option("--format", help="Write the prompts still to rank as tasks of this tool.")
    ] = None,
    ranked: Annotated[
        bool, typer.Option("--rankings", help="With --format: write the rankings instead, as the tool's annotations.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a run's prompts, answers, rankings and skips to a file.

    Exports rankings by people, by a judge or from a data set.

    `annotations import` reads the file on this or another machine. docs/annotations.md describes its rows.

    \b
    Examples:
      python -m lowrank_rlhf annotations export people people.jsonl
      python -m lowrank_rlhf annotations export people pairs.jsonl --comparisons
      python -m lowrank_rlhf annotations export people written.jsonl --demonstrations
      python -m lowrank_rlhf annotations export people tasks.json --format label-studio
      python -m lowrank_rlhf annotations export people ranked.json --format argilla --rankings
    """
    if ranked and not tool:
        raise UserError("--rankings requires --format; without it the export has all rankings")
    if comparisons + demonstrations + (tool is not None) > 1:
        raise UserError("--comparisons, --demonstrations and --format cannot be combined; export one at a time")
    contents, rankings = _ranked(run, runs)
    if comparisons:
        rankings = contents.learned() if contents.decisions else rankings
        text = comparisons_to_jsonl(contents, rankings)
        rows = counted(text.count("\n"), "comparison")
        lines = [f"wrote {file}: {rows} from {counted(len(rankings), 'ranking')}"]
        empty = "no comparisons to export: no ranking prefers one answer to another"
    elif demonstrations:
        text = demonstrations_to_jsonl(contents)
        rows = counted(text.count("\n"), "demonstration")
        command = f"{COMMAND} run CONFIG data.prompts={shlex.quote(str(file))}"
        lines = [f"wrote {file}: {rows}; to use them in sft:", f"  {command}"]
        empty = "no demonstrations to export: no annotator has written an answer"
    elif tool:
        text, lines, empty = ranked_tasks(contents, tool, file) if ranked else tasks(contents, tool, run, file)
    else:
        text, lines, empty = to_jsonl(contents), [f"wrote {file}: {_counts(contents, rankings)}"], ""
        lines += _not_current(contents, rankings)
    if not text:
        raise UserError(f"{run}: {empty}")
    _write(file, text, force)
    for line in lines:
        echo(line)


def _write(file: Path, text: str, force: bool) -> None:
    if file.exists() and not force:
        raise UserError(f"{file} already exists; choose another name or replace it with --force")
    try:
        write_atomic(file, text)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None


def _counts(contents: Contents, rankings: Sequence[Ranking]) -> str:
    annotators = len({ranking.annotator for ranking in rankings})
    return (
        f"{counted(len(contents.prompts), 'prompt')}, {counted(len(contents.answers), 'answer')}, "
        f"{counted(len(rankings), 'ranking')} by {counted(annotators, 'annotator')}, "
        f"{counted(len(contents.skips), 'skip')}"
    )


def _not_current(contents: Contents, rankings: Sequence[Ranking]) -> list[str]:
    """Return notes on rankings that were replaced or withdrawn; those of attention checks are left out."""
    checks = {check.prompt_id for check in contents.checks}
    history = [saved for saved in contents.history if saved.ranking.prompt_id not in checks]
    current, withdrawn = len(contents.current()), sum(saved.withdrawn for saved in history)
    notes = []
    if replaced := len(rankings) - current:
        notes.append(
            f"{counted(replaced, 'ranking')} followed by a later one of the same prompt and annotator: `import` counts "
            "only the last one; --comparisons exports all of them"
        )
    if replaced := len(history) - withdrawn - len(rankings):
        notes.append(f"also {counted(replaced, 'ranking')} replaced by a later one of the same annotator")
    if withdrawn:
        notes.append(f"also {counted(withdrawn, 'ranking')} withdrawn")
    return notes


@app.command("import")
def import_(
    run: RunArgument,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Export, rankings without texts, or exported comparisons; with --format the tool's JSON array.",
        ),
    ],
    runs: RunsOption = Path("runs"),
    new: Annotated[bool, typer.Option("--new", help="Create a folder for annotation only, without a run.")] = False,
    tool: Annotated[Tool | None, typer.Option("--format", help="Tool that wrote the file's annotations.")] = None,
) -> None:
    """Add rankings from a file: all, or none if a line is invalid.

    Existing rankings are not added twice. An added ranking counts as later than existing ones of the same annotator.
    With --new, the file's prompts and answers are imported too, to be ranked on this machine.

    \b
    Examples:
      python -m lowrank_rlhf annotations import people from_anna.jsonl
      python -m lowrank_rlhf annotations import for_anna people.jsonl --new
      python -m lowrank_rlhf annotations import people done.json --format argilla
    """
    if new and tool:
        raise UserError("--new and --format cannot be combined: the tool's file has no prompts of its own")
    lines = [] if tool else read_rows(file)
    project = _new_project(runs / run) if new else find_project(run, runs)
    if tool:
        lines = read_tasks(file, tool, project.store.contents())
    try:
        plan = project.store.merge(lines, new_items=project.settings is None)
    except UserError:
        if new:  # it is still empty; remove it, so that a retry finds the name free
            for leftover in project.folder.iterdir():
                leftover.unlink()
            project.folder.rmdir()
        raise
    for line in _report(plan):
        echo(line)
    echo(project_summary(project))


@app.command("exclude")
def exclude(
    run: RunArgument,
    annotator: Annotated[str, typer.Argument(metavar="NAME", help="Annotator, as in `label RUN --stats`.")],
    runs: RunsOption = Path("runs"),
    undo: Annotated[bool, typer.Option("--undo", help="Restore the excluded rankings.")] = False,
) -> None:
    """Withdraw all rankings by an annotator.

    They are kept in the file. The annotator gets no more prompts until they are restored.

    \b
    Examples:
      python -m lowrank_rlhf annotations exclude people bob
      python -m lowrank_rlhf annotations exclude people bob --undo
    """
    project = find_project(run, runs)
    if not (count := exclude_annotator(project.store, annotator, not undo)):
        names = sorted({saved.ranking.annotator for saved in project.store.contents().history})
        what = "excluded rankings" if undo else "rankings"
        raise UserError(f"{run}: no {what} by {annotator!r}. Annotators: {', '.join(names) or 'none'}")
    echo(f"{counted(count, 'ranking')} by {visible(annotator)} {'restored' if undo else 'excluded'}")
    keys = [check for check in project.store.contents().checks if check.source == annotator and check.active]
    if keys and not undo:
        echo(
            f"attention checks that still expect the order by {visible(annotator)}: {len(keys)}; remove all checks "
            f"with `annotations checks {run} --remove`"
        )
    echo(project_summary(project))


def _new_project(folder: Path) -> Project:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{folder} already exists; import into it without --new, or choose another name") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be created: {error.strerror}") from None
    return open_project(folder, new=True)


def _report(plan: ImportPlan) -> list[str]:
    new = sum(not saved.withdrawn for saved in plan.rankings)
    withdrawn = len(plan.rankings) - new + len(plan.withdrawn)
    lines = [f"{counted(new, 'ranking')} added, {plan.known} already present"]
    if plan.prompts:
        lines.append(f"{counted(len(plan.prompts), 'prompt')} with {counted(len(plan.answers), 'answer')} added")
    if plan.replaced:
        lines.append(f"{counted(plan.replaced, 'existing ranking')} replaced by a later one of the same annotator")
    if withdrawn:
        lines.append(f"{counted(withdrawn, 'ranking')} withdrawn; kept in the history")
    if plan.skips:
        lines.append(f"{counted(len(plan.skips), 'skip')} added")
    if plan.guidelines:
        lines.append(f"{counted(len(plan.guidelines), 'version')} of guidelines added")
    if plan.checks:
        lines.append(f"{counted(len(plan.checks), 'attention check')} added")
    if plan.decisions:
        lines.append(f"{counted(len(plan.decisions), 'decision')} added")
    if plan.left_out:
        lines.append(
            f"attention checks and decisions of the file left out: {plan.left_out}; only a project without rankings "
            "takes them"
        )
    if plan.decided_pairs:
        lines.append(f"decisions among the comparisons left out: {plan.decided_pairs}; they are no annotator's")
    return lines
