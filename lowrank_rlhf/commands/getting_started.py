"""`doctor`, `presets` and `schema`: check the machine, list ready-made configs, explain settings.

Imports no large library: `doctor` must run where one of them is missing.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated

import psutil
import typer
from packaging.requirements import Requirement

from lowrank_rlhf import __version__
from lowrank_rlhf.commands.common import JsonOption, RunsOption, echo
from lowrank_rlhf.config import reference
from lowrank_rlhf.config.loading import preset_folder, preset_names, preset_path
from lowrank_rlhf.errors import ExitCode, UserError
from lowrank_rlhf.run.progress import memory

OLDEST_PYTHON = (3, 11)
_SCHEMA = "../docs/config.schema.json"
"""JSON schema that a preset names for editors, from the presets' folder."""
INSTALL = "python -m pip install -r requirements.txt"
FREE_MEMORY, FREE_DISK = 2 * 10**9, 4 * 10**9
"""Bytes that the quickstart needs: its peak memory, and disk space for a model and a run."""

presets_app = typer.Typer(rich_markup_mode=None)


@dataclass(frozen=True)
class Finding:
    """One line of `doctor`; `fix` is empty if there is no problem."""

    name: str
    found: str
    fix: str = ""


def doctor(runs: RunsOption = Path("runs"), as_json: JsonOption = False) -> None:
    """Check versions, memory, disk and devices; suggest fixes.

    The output contains no user name, full path or key, so it is safe to paste into an issue. Exit code 1 if a problem
    was found.

    \b
    Examples:
      python -m lowrank_rlhf doctor
      python -m lowrank_rlhf doctor --json
    """
    findings = examine(runs)
    if as_json:
        rows = [{"what": finding.name, "found": finding.found, "mend": finding.fix} for finding in findings]
        print(json.dumps(rows, indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            echo(f"{'!' if finding.fix else ' '} {finding.name:<{width}}  {finding.found}")
            if finding.fix:
                echo(f"  {'':<{width}}  -> {finding.fix}")
    if any(finding.fix for finding in findings):
        raise typer.Exit(int(ExitCode.FAILED))


def schema(
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="Explain this setting, or all settings of this section.")
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown instead of a JSON schema.")] = False,
) -> None:
    """Explain a setting, or print all as JSON schema or Markdown.

    \b
    Examples:
      python -m lowrank_rlhf schema ppo.kl_coef
      python -m lowrank_rlhf schema ppo
      python -m lowrank_rlhf schema > config.schema.json
      python -m lowrank_rlhf schema --markdown
    """
    if key and as_markdown:
        raise UserError("--markdown prints all settings; remove it or KEY")
    if key:
        print(reference.explanation(key), end="")
        return
    print(reference.markdown() if as_markdown else reference.json_schema(), end="")


@presets_app.callback(invoke_without_command=True)
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
        raise UserError(f"no presets found in {preset_folder()}")
    for name in names:
        print(f"{name:<{max(map(len, names))}}  {_first_comment(preset_path(name))}".rstrip())


@presets_app.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a preset.

    \b
    Examples:
      python -m lowrank_rlhf presets show quickstart
    """
    print(preset_path(name).read_text(encoding="utf-8"), end="")


@presets_app.command()
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Default: NAME.yaml in the current folder.")
    ] = None,
) -> None:
    """Copy a preset to a new file, to edit it.

    An existing file is not replaced.

    \b
    Examples:
      python -m lowrank_rlhf presets copy quickstart
      python -m lowrank_rlhf presets copy quickstart my.yaml
    """
    text = preset_path(name).read_text(encoding="utf-8")
    target = file or Path(f"{name}.yaml")
    text = text.replace(_SCHEMA, Path(os.path.relpath(preset_path(name).parent / _SCHEMA, target.parent)).as_posix())
    try:
        with target.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UserError(f"{target} already exists; choose another name") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from None
    print(f"wrote {target}")


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")


def examine(folder: Path) -> list[Finding]:
    """Return the state of this machine and of the disk of `folder`, without user, host, key or full path."""
    return [_python(), *_packages(_requirements()), _processor(), _memory(), _disk(folder), *_gpus()]


def _python() -> Finding:
    fine = sys.version_info[:2] >= OLDEST_PYTHON
    found = f"{platform.python_version()}, {platform.system()} {platform.machine()}, lowrank_rlhf {__version__}"
    return Finding("python", found, "" if fine else "install Python 3.11 or newer")


def _requirements() -> list[Requirement]:
    """Return the package's requirements, from pyproject.toml in a checkout, else from the installed package."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.exists():
        lines = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        lines = requires("lowrank_rlhf") or []
    found = [Requirement(line) for line in lines]
    return [requirement for requirement in found if requirement.marker is None or requirement.marker.evaluate()]


def _packages(wanted: Sequence[Requirement]) -> list[Finding]:
    findings = []
    for requirement in wanted:
        found = _installed(requirement.name)
        if not found:
            findings.append(Finding(requirement.name, "not installed", INSTALL))
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        findings.append(
            Finding(requirement.name, found, "" if fits else f"requires {requirement.specifier}: {INSTALL}")
        )
    return findings


def _processor() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = os.environ.get("OMP_NUM_THREADS")
    found = f"{usable} of {os.cpu_count()} cores usable" + (f", OMP_NUM_THREADS is {limit}" if limit else "")
    if limit and limit.isdigit() and usable and int(limit) > usable:
        return Finding("processor", found, f"more threads than cores are slow: export OMP_NUM_THREADS={usable}")
    return Finding("processor", found)


def _memory() -> Finding:
    state = psutil.virtual_memory()
    found = f"{memory(state.available)} of {memory(state.total)} available"
    return Finding(
        "memory", found, "" if state.available >= FREE_MEMORY else "the quickstart needs 2 GB; close other programs"
    )


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return Finding(
        "disk",
        f"{memory(free)} free for runs",
        "" if free >= FREE_DISK else "free disk space, or set --runs to another disk",
    )


def _gpus() -> list[Finding]:
    """Return the GPUs that nvidia-smi lists. PyTorch, which would have to be imported, may not be able to use them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [Finding("gpu", "none found by nvidia-smi; everything runs on the CPU")]
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return [Finding("gpu", "nvidia-smi does not respond", "check the driver: nvidia-smi")]
    if done.returncode:
        return [Finding("gpu", "nvidia-smi failed", "check the driver: nvidia-smi")]
    fix = ""
    if _installed("torch").endswith("+cpu"):
        fix = "this PyTorch is a CPU build: python -m pip install --force-reinstall torch"
    return [Finding("gpu", line.strip(), fix) for line in done.stdout.splitlines() if line.strip()]


def _installed(package: str) -> str:
    """Return the version of a package, or an empty string."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
