"""Each bad input ends with its exit code and a message that mends it; no traceback, and no file is changed."""

import sys
from pathlib import Path

import pytest
from bad_inputs import CASES, Case

from lowrank_rlhf import cli


def lay_out(files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def test_the_corpus_is_as_large_as_it_is_meant_to_be() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    lay_out(case.files)
    before = contents()
    monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", *case.command.split(" ")])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    assert caught.value.code == case.code, err
    for words in case.says:
        assert words in err, f"{words!r} is not in:\n{err}"
    assert "Traceback" not in out + err
    changed = {name for name, content in contents().items() if before.get(name) != content}
    assert not {name for name in changed if not name.startswith("runs/")}
    assert not list(Path("runs").glob("*/done/*"))
