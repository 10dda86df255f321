"""The command `evaluate`, as tests of several files call it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lowrank_rlhf import cli


@pytest.fixture
def evaluate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in a folder of its own: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(run: Path, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", "evaluate", str(run), *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return int(caught.value.code or 0), *capsys.readouterr()

    return call
