"""`doctor` and `schema`: about the machine, and about the settings."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lowrank_rlhf.commands.common import JsonOption, RunsOption, echo
from lowrank_rlhf.commands.diagnostics import examine
from lowrank_rlhf.config import reference
from lowrank_rlhf.errors import ExitCode, UserError


def doctor(runs: RunsOption = Path("runs"), as_json: JsonOption = False) -> None:
    """Check versions, memory, disk and devices; suggest fixes.

    The output names no user, path or key: it is safe to paste into an issue. Exit code 1 if something is wrong.

    \b
    Examples:
      python -m lowrank_rlhf doctor
      python -m lowrank_rlhf doctor --json
    """
    findings = examine(runs)
    if as_json:
        print(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            echo(f"{'!' if finding.mend else ' '} {finding.what:<{width}}  {finding.found}")
            if finding.mend:
                echo(f"  {'':<{width}}  -> {finding.mend}")
    if any(finding.mend for finding in findings):
        raise typer.Exit(int(ExitCode.FAILED))


def schema(
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="Explain this setting, or this section with all in it.")
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="A page to read instead of a JSON schema.")] = False,
) -> None:
    """Explain a setting, or print all as a JSON schema or a page.

    \b
    Examples:
      python -m lowrank_rlhf schema ppo.kl_coef
      python -m lowrank_rlhf schema ppo
      python -m lowrank_rlhf schema > config.schema.json
      python -m lowrank_rlhf schema --markdown
    """
    if key and as_markdown:
        raise UserError("--markdown prints all settings: leave it out, or KEY")
    if key:
        print(reference.explanation(key), end="")
        return
    print(reference.markdown() if as_markdown else reference.json_schema(), end="")
