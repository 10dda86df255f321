"""What this machine has, what the toolkit needs, and the command that mends what is missing. Imports nothing heavy."""

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

import psutil
from packaging.requirements import Requirement

from lowrank_rlhf import __version__
from lowrank_rlhf.run.progress import memory

OLDEST_PYTHON = (3, 11)
INSTALL = "python -m pip install -r requirements.txt"
FREE_MEMORY, FREE_DISK = 2 * 10**9, 4 * 10**9
"""Bytes that the quickstart wants: its peak memory, and room for a model and a run."""


@dataclass(frozen=True)
class Finding:
    """One line of the report; `mend` is what to do where something is wrong, and empty where all is well."""

    what: str
    found: str
    mend: str = ""


def examine(folder: Path) -> list[Finding]:
    """Look at this machine, and at the disk that `folder` lies on. Names no user, host, key or full path."""
    return [_python(), *_packages(_requirements()), _processor(), _memory(), _disk(folder), *_gpus()]


def _python() -> Finding:
    fine = sys.version_info[:2] >= OLDEST_PYTHON
    found = f"{platform.python_version()}, {platform.system()} {platform.machine()}, lowrank_rlhf {__version__}"
    return Finding("python", found, "" if fine else "Python 3.11 or newer is needed")


def _requirements() -> list[Requirement]:
    """The ranges this package asks for: from pyproject.toml in a checkout, else from the installed package."""
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
            Finding(requirement.name, found, "" if fits else f"{requirement.specifier} is needed: {INSTALL}")
        )
    return findings


def _processor() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = os.environ.get("OMP_NUM_THREADS")
    found = f"{usable} of {os.cpu_count()} cores usable" + (f", OMP_NUM_THREADS is {limit}" if limit else "")
    if limit and limit.isdigit() and usable and int(limit) > usable:
        return Finding(
            "processor", found, f"more threads than cores wait for each other: export OMP_NUM_THREADS={usable}"
        )
    return Finding("processor", found)


def _memory() -> Finding:
    state = psutil.virtual_memory()
    found = f"{memory(state.available)} of {memory(state.total)} available"
    return Finding(
        "memory", found, "" if state.available >= FREE_MEMORY else "the quickstart takes 2 GB; close something"
    )


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return Finding(
        "disk", f"{memory(free)} free for runs", "" if free >= FREE_DISK else "free some, or choose --runs elsewhere"
    )


def _gpus() -> list[Finding]:
    """What nvidia-smi lists; whether PyTorch can use it shows only when it is loaded."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [Finding("gpu", "none that nvidia-smi knows; everything runs on the CPU")]
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return [Finding("gpu", "nvidia-smi does not answer", "check the driver: nvidia-smi")]
    if done.returncode:
        return [Finding("gpu", "nvidia-smi failed", "check the driver: nvidia-smi")]
    mend = ""
    if _installed("torch").endswith("+cpu"):
        mend = "this PyTorch is a CPU build: python -m pip install --force-reinstall torch"
    return [Finding("gpu", line.strip(), mend) for line in done.stdout.splitlines() if line.strip()]


def _installed(package: str) -> str:
    """Its version, or nothing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
