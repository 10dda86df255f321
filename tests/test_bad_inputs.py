"""Each bad input ends with its exit code and a message that mends it; no traceback, and no file is changed."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import bad_commands
import bad_inputs
import pytest
from bad_inputs import Case
from people import a_run

from lowrank_rlhf import cli
from lowrank_rlhf.artifacts import RunDir
from lowrank_rlhf.errors import ExitCode

CASES = [*bad_inputs.CASES, *bad_commands.CASES]


def lay_out(files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@contextmanager
def set_up(what: str) -> Iterator[None]:
    if what == "people":
        a_run("people")
    with RunDir(Path("runs/a")).lock() if what == "locked" else nullcontext():
        yield


def test_the_corpus_is_as_large_as_it_is_meant_to_be() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 160
    assert {case.code for case in CASES} == set(ExitCode) - {ExitCode.OK, ExitCode.FAILED, ExitCode.STOPPED}
    assert all(case.says or case.shows for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    lay_out(case.files)
    with set_up(case.setup):
        before = contents()
        monkeypatch.setattr(sys, "stdin", io.StringIO(case.stdin))
        monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", *case.command.split(" ")])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        after = contents()
    out, err = capsys.readouterr()
    assert caught.value.code == case.code, err
    for words, stream in (*((words, err) for words in case.says), *((words, out) for words in case.shows)):
        assert words in stream, f"{words!r} is not in:\n{stream}"
    assert "Traceback" not in out + err
    changed = {name for name, content in after.items() if before.get(name) != content}
    assert not {name for name in changed if not name.startswith("runs/")}
    assert not {name for name in changed if "/done/" in name}
