"""Exports to other annotation tools: text of the file, the lines to print, and the error for an empty one."""

import shlex
from pathlib import Path

from lowrank_rlhf.errors import visible
from lowrank_rlhf.preferences.contents import Contents
from lowrank_rlhf.preferences.exchange.files import Tool, to_ranked_tasks, to_tasks
from lowrank_rlhf.preferences.project import COMMAND, counted

_NO_PLACE = {
    Tool.ARGILLA: "Argilla requires a place for each answer",
    Tool.LABEL_STUDIO: "Label Studio requires an order without ties",
}
_USERS = {
    Tool.ARGILLA: "Argilla identifies its users by UUID",
    Tool.LABEL_STUDIO: "Label Studio identifies its users by e-mail",
}


def tasks(contents: Contents, tool: Tool, run: str, file: Path) -> tuple[str, list[str], str]:
    """Return the prompts to rank as the tool's file, the lines to print, and the error if there are none."""
    command = f"{COMMAND} annotations import {shlex.quote(run)} FILE --format {tool}"
    lines = [f"wrote {file}: tasks for {tool}; docs/annotations.md has its settings. To import the annotations:"]
    return to_tasks(contents, tool), [*lines, f"  {command}"], "no prompts to export: all are ranked"


def ranked_tasks(contents: Contents, tool: Tool, file: Path) -> tuple[str, list[str], str]:
    """Return the rankings as the tool's file, the lines to print, and the error if there are none."""
    text, rankings, left_out, unknown = to_ranked_tasks(contents, tool)
    lines = [f"wrote {file}: {counted(rankings, 'ranking')}; docs/annotations.md names what {tool} does not keep"]
    if left_out:
        lines.append(f"{counted(left_out, 'ranking')} left out: {_NO_PLACE[tool]}")
    if unknown:
        names = ", ".join(map(visible, unknown))
        lines.append(f"{_USERS[tool]}; to load the file into it, replace these names: {names}")
    return text, lines, f"no rankings to export: {_NO_PLACE[tool]}" if left_out else "no rankings to export"
