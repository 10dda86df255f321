"""Shared parts of the notebooks: the command line from a cell, a run's figures, and tables."""

import html
import json
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from IPython.display import HTML

SETTINGS = shlex.split(os.environ.get("LOWRANK_RLHF_NOTEBOOK_SETTINGS", ""))
"""Settings by which `notebooks/execute.py` shortens the runs; empty when you run a notebook yourself."""

# Jupyter makes its child processes print as to a terminal; progress must be plain lines.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "CLICOLOR_FORCE")}
_TEXT: Any = {"text": True, "encoding": "utf-8", "env": _ENVIRONMENT}

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's bars need no widget here


def cli(*words: str, expect: Sequence[int] = (0,)) -> None:
    """Run `python -m lowrank_rlhf WORDS` and show its output as it is printed.

    Raises RuntimeError if the exit code is not one of `expect`. Interrupt the cell to stop a run; it saves its work,
    and the same cell resumes it.
    """
    print("$ python -m lowrank_rlhf", shlex.join(words), flush=True)
    with subprocess.Popen(_command(words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **_TEXT) as process:
        try:
            _show(process.stdout)
        except KeyboardInterrupt:  # the command was interrupted too and prints while it saves its work
            _show(process.stdout)
    if process.returncode not in expect:
        raise RuntimeError(f"the command ended with exit code {process.returncode}; see its last lines")


def output_of(*words: str, typed: str = "", expect: Sequence[int] = (0,)) -> str:
    """Return the output of `python -m lowrank_rlhf WORDS` with `typed` as its input.

    Raises RuntimeError with its error message if the exit code is not one of `expect`.
    """
    ended = subprocess.run(_command(words), input=typed, capture_output=True, check=False, **_TEXT)
    if ended.returncode not in expect:
        raise RuntimeError(ended.stderr.strip())
    return str(ended.stdout)


def _show(lines: Iterable[str] | None) -> None:
    for line in lines or ():
        print(line, end="", flush=True)


def _command(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "lowrank_rlhf", *words]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def series(run: Path, key: str) -> tuple[list[int], list[float]]:
    """Return steps and values of a PPO metric from the run's `metrics.jsonl`."""
    rows = [row for row in rows_of(run / "metrics.jsonl") if row["stage"] == "ppo" and key in row]
    return [row["step"] for row in rows], [row[key] for row in rows]


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> HTML:
    """Return an HTML table; numbers are rounded, and texts of models and people are escaped."""
    lines = [_line("th", headings), *(_line("td", row) for row in rows)]
    return HTML(f"<table>{''.join(lines)}</table>")


def _line(tag: str, cells: Sequence[object]) -> str:
    texts = [f"{cell:z.3g}" if isinstance(cell, float) else str(cell) for cell in cells]
    cell = f'<{tag} style="text-align:left">{{}}</{tag}>'
    return f"<tr>{''.join(cell.format(html.escape(text)) for text in texts)}</tr>"
