"""`compare`: several runs side by side, in the terminal and as an HTML page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import table as rich_table
from rich.console import Console
from rich.text import Text

from lowrank_rlhf.commands.common import RunsOption, echo, run_folder
from lowrank_rlhf.errors import UserError, visible
from lowrank_rlhf.reports.format import Table
from lowrank_rlhf.reports.locale import ENGLISH
from lowrank_rlhf.reports.run_comparison import ComparedRun, compare_runs, comparison_page, read_run
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.files import write_atomic
from lowrank_rlhf.sweep.results import runs_of_sweep

_COLUMN = 20
"""Width of a run's column; a table that is wider than the terminal is continued below."""

ComparedArgument = Annotated[
    list[str], typer.Argument(metavar="RUN RUN...", help="Names or folders of runs, or of a sweep for all its runs.")
]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", metavar="FILE.html", help="Save as a page, with curves and answers.")
]


def compare(compared: ComparedArgument, runs: RunsOption = Path("runs"), html: HtmlOption = None) -> None:
    """Compare several runs: final figures, settings, alarms.

    Runs may be unfinished. Only settings that differ are listed. With --html also overlaid curves, and the answers to
    the test prompts that all runs share, on a page in English and Chinese that needs no other file.

    \b
    Examples:
      python -m lowrank_rlhf compare quickstart gentle
      python -m lowrank_rlhf compare quickstart-sweep --html sweep.html
      python -m lowrank_rlhf compare /data/runs/a /data/runs/b
    """
    _check_target(html)
    found = _read(compared, runs)
    result = compare_runs(found, ENGLISH)
    console = Console()
    for note in result.notes:
        echo(f"Note: {note}")
    for table in (result.final, result.settings):
        _print(table, console)
    console.print()
    for run, alarm in result.alarms:
        echo(f"WARNING: {run}: {alarm.text(ENGLISH)}")
    if not result.alarms:
        echo(ENGLISH("report.no_alarms"))
    if html:
        write_atomic(html, comparison_page(found))
        echo(f"Saved as {html}")


def _check_target(html: Path | None) -> None:
    """Check the page's name. Raises `UserError` if it is no page, or may be a file of a run."""
    if html is None:
        return
    if html.suffix != ".html" or html.is_dir():
        raise UserError(f"--html {html}: must be a file whose name ends in .html")
    if (html.parent / "config.yaml").is_file():
        raise UserError(f"--html {html}: is in the folder of a run. Write the page to another folder")


def _read(compared: Sequence[str], runs: Path) -> list[ComparedRun]:
    """Read the runs. Raises `UserError` if one does not exist or is given twice, and for fewer than two."""
    names = [name for given in compared for name in (runs_of_sweep(given, runs) or [given])]
    folders = {name: run_folder(name, runs) for name in names}
    real = [folder.resolve() for folder in folders.values()]
    if twice := [name for name in names if names.count(name) > 1 or real.count(folders[name].resolve()) > 1]:
        raise UserError(f"{twice[-1]}: given twice; name each run once")
    if len(names) < 2:
        raise UserError(f"{' '.join(compared)}: is one run. Name two or more, or a sweep: compare RUN RUN")
    short = [folder.name for folder in real]
    return [
        read_run(RunDir(folder), folder.name if short.count(folder.resolve().name) == 1 else name)
        for name, folder in folders.items()
    ]


def _print(table: Table, console: Console) -> None:
    """Print a table; runs for which the terminal is too narrow follow below, with the same rows."""
    console.print(Text(f"\n{table.title}", style="bold"))
    echo(table.lead)
    labels = max((len(row[0]) for row in table.rows), default=0)
    at_once = max(1, (console.width - labels) // _COLUMN)
    for start in range(1, len(table.header) if table.rows else 0, at_once):
        columns = (0, *range(start, min(start + at_once, len(table.header))))
        drawn = rich_table.Table(box=None, pad_edge=False)
        for place in columns:
            drawn.add_column(Text(visible(table.header[place])), overflow="fold")
        for row in table.rows:
            drawn.add_row(*(Text(visible(row[place])) for place in columns))
        console.print()
        console.print(drawn)
