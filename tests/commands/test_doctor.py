"""`doctor` finds problems, names a fix for each, and prints nothing private."""

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

from lowrank_rlhf.commands import getting_started


def found(name: str, findings: list[getting_started.Finding]) -> getting_started.Finding:
    return next(finding for finding in findings if finding.name == name)


def test_this_machine_is_fit(tmp_path) -> None:
    findings = getting_started.examine(tmp_path / "not" / "made" / "yet")
    names = [finding.name for finding in findings]
    assert names[0] == "python"
    assert {"torch", "peft", "bitsandbytes", "processor", "memory", "disk", "gpu"} <= set(names)
    assert [finding for finding in findings[: names.index("processor")] if finding.fix] == []


def test_what_is_missing_or_too_old_is_named_with_the_command(monkeypatch) -> None:
    wanted = [Requirement(text) for text in ("no-such-package>=1", "pytest>=999", "pytest>=1", "rich")]
    assert [finding.fix for finding in getting_started._packages(wanted)] == [
        getting_started.INSTALL,
        f"requires >=999: {getting_started.INSTALL}",
        "",
        "",
    ]
    monkeypatch.setattr(getting_started, "OLDEST_PYTHON", (9, 0))
    assert getting_started._python().fix == "install Python 3.11 or newer"


def test_an_installed_package_reads_its_own_requirements(monkeypatch) -> None:
    monkeypatch.setattr(getting_started, "__file__", "/nowhere/lowrank_rlhf/commands/getting_started.py")
    monkeypatch.setattr(getting_started, "requires", lambda _: ["torch>=2.6", 'colorama; sys_platform == "none"'])
    assert [requirement.name for requirement in getting_started._requirements()] == ["torch"]


def test_threads_memory_and_disk(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "9999")
    assert "export OMP_NUM_THREADS=" in getting_started._processor().fix
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert getting_started._processor().fix == ""
    monkeypatch.setattr(
        getting_started.psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 30, total=1 << 33)
    )
    assert getting_started._memory().found == "1.0 GiB of 8.0 GiB available"
    assert "2 GB" in getting_started._memory().fix
    monkeypatch.setattr(getting_started.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    assert "--runs" in getting_started._disk(tmp_path).fix


def fake_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for nvidia-smi")
def test_gpus(monkeypatch, tmp_path) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, "echo 'Tesla T4, 15360 MiB, 550.54'")
    monkeypatch.setattr(getting_started, "_installed", lambda _: "2.13.0+cpu")
    (gpu,) = getting_started._gpus()
    assert gpu.found == "Tesla T4, 15360 MiB, 550.54"
    assert "CPU build" in gpu.fix
    monkeypatch.setattr(getting_started, "_installed", lambda _: "2.13.0+cu130")
    assert getting_started._gpus()[0].fix == ""
    fake_nvidia_smi(tmp_path, monkeypatch, "exit 9")
    assert getting_started._gpus()[0].found == "nvidia-smi failed"
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert getting_started._gpus()[0].fix == ""


def test_the_command_is_safe_to_paste_and_its_exit_code_tells(tmp_path) -> None:
    secret = "sk-not-to-be-shown"
    environment = os.environ | {"PYTHONPATH": str(Path(getting_started.__file__).parents[2]), "OPENAI_API_KEY": secret}
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
