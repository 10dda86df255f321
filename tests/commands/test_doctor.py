"""doctor says what is wrong, how to mend it, and nothing that should stay private."""

import getpass
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from lowrank_rlhf.commands import diagnostics


def found(name: str, findings: list[diagnostics.Finding]) -> diagnostics.Finding:
    return next(finding for finding in findings if finding.what == name)


def test_this_machine_is_fit(tmp_path) -> None:
    findings = diagnostics.examine(tmp_path / "not" / "made" / "yet")
    names = [finding.what for finding in findings]
    assert names[0] == "python"
    assert {"torch", "peft", "bitsandbytes", "processor", "memory", "disk", "gpu"} <= set(names)
    assert [finding for finding in findings[: names.index("processor")] if finding.mend] == []


def test_what_is_missing_or_too_old_is_named_with_the_command(monkeypatch) -> None:
    wanted = [Requirement(text) for text in ("no-such-package>=1", "pytest>=999", "pytest>=1", "rich")]
    assert [finding.mend for finding in diagnostics._packages(wanted)] == [
        diagnostics.INSTALL,
        f">=999 is needed: {diagnostics.INSTALL}",
        "",
        "",
    ]
    monkeypatch.setattr(diagnostics, "OLDEST_PYTHON", (9, 0))
    assert diagnostics._python().mend == "Python 3.11 or newer is needed"


def test_an_installed_package_reads_its_own_requirements(monkeypatch) -> None:
    monkeypatch.setattr(diagnostics, "__file__", "/nowhere/lowrank_rlhf/commands/diagnostics.py")
    monkeypatch.setattr(diagnostics, "requires", lambda _: ["torch>=2.6", 'colorama; sys_platform == "none"'])
    assert [requirement.name for requirement in diagnostics._requirements()] == ["torch"]


def test_threads_memory_and_disk(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "9999")
    assert "export OMP_NUM_THREADS=" in diagnostics._processor().mend
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert diagnostics._processor().mend == ""
    monkeypatch.setattr(diagnostics.psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 30, total=1 << 33))
    assert diagnostics._memory().found == "1.0 GiB of 8.0 GiB available"
    assert "2 GB" in diagnostics._memory().mend
    monkeypatch.setattr(diagnostics.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    assert "--runs" in diagnostics._disk(tmp_path).mend


def fake_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for nvidia-smi")
def test_gpus(monkeypatch, tmp_path) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, "echo 'Tesla T4, 15360 MiB, 550.54'")
    monkeypatch.setattr(diagnostics, "_installed", lambda _: "2.13.0+cpu")
    (gpu,) = diagnostics._gpus()
    assert gpu.found == "Tesla T4, 15360 MiB, 550.54"
    assert "CPU build" in gpu.mend
    monkeypatch.setattr(diagnostics, "_installed", lambda _: "2.13.0+cu130")
    assert diagnostics._gpus()[0].mend == ""
    fake_nvidia_smi(tmp_path, monkeypatch, "exit 9")
    assert diagnostics._gpus()[0].found == "nvidia-smi failed"
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert diagnostics._gpus()[0].mend == ""


def test_the_command_is_safe_to_paste_and_its_exit_code_tells(tmp_path) -> None:
    secret = "sk-not-to-be-shown"
    environment = os.environ | {"PYTHONPATH": str(Path(diagnostics.__file__).parents[2]), "OPENAI_API_KEY": secret}
    command = [sys.executable, "-m", "lowrank_rlhf", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    as_json = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    findings = json.loads(as_json.stdout)
    expected = int(any(finding["mend"] for finding in findings))  # memory or disk may be short here
    assert (done.returncode, as_json.returncode) == (expected, expected)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [finding["what"] for finding in findings]
    for private in (secret, str(Path.home()), str(tmp_path), socket.gethostname(), getpass.getuser() + "@"):
        assert private not in done.stdout + as_json.stdout
