"""Each bad input ends with its exit code and a message that mends it; no traceback, and no file is changed."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import bad_commands
import bad_contents
import bad_inputs
import pytest
from bad_inputs import Case
from people import a_run

from lowrank_rlhf import cli
from lowrank_rlhf.errors import ExitCode
from lowrank_rlhf.run.directory import RunDir

CASES = [*bad_inputs.CASES, *bad_commands.CASES, *bad_contents.CASES]


def lay_out(files: dict[str, str | bytes], links: dict[str, str]) -> None:
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    for name, target in links.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).symlink_to(target)


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@contextmanager
def set_up(what: str) -> Iterator[None]:
    if what == "people":
        a_run("people")
    with RunDir(Path("runs/a")).lock() if what == "locked" else nullcontext():
        yield


def test_the_corpus_is_as_large_as_it_is_meant_to_be() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 236
    assert {case.code for case in CASES} == set(ExitCode) - {
        ExitCode.OK,
        ExitCode.FAILED,
        ExitCode.NOT_FINITE,
        ExitCode.STOPPED,
    }
    assert all(case.says or case.shows for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    lay_out(case.files, case.links)
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


EVERYTHING = """\
name: ../x
model: {source: x}
stages: [sft, sample, rank, reward, ppo]
data: {prompts: gone.jsonl}
sft: {source: adapter}
sample: {max_new_tokens: 600}
rank: {judge: robot}
reward: {margin: 1, loss: plackett_luce}
ppo: {steps: 5, minibatches: 5, critic_warmup_steps: 9}
evaluate: {second_judge: sentiment, promts: 4}
"""
NOTHING_ELSE = {
    "ppo: {batch_size: x, minibatches: 5}": "my.yaml:3:7: ppo.batch_size: must be a whole number",
    "rank: {source: datset, dataset: my.yaml}": "my.yaml:3:8: rank.source: must be",
    "rank: {judge: endpoint, endpoint: {url: 'ftp:x', model: m}}": "my.yaml:3:36: rank.endpoint.url: must be an http",
    "rank: {judge: endpoint, endpoint: {model: m}}": "my.yaml:3:25: rank.endpoint.url: missing",
    "rank: {judge: endpoint, endpoint: here}": "my.yaml:3:25: rank.endpoint: must be a section",
    "sample: {max_new_tokens: 600}\nmodel2: 1": "my.yaml:3:10: sample.max_new_tokens (600) must be below",
    "stages: [sft, pop, ppo]": "my.yaml:3:15: stages[1]: must be",
    "stages: [ppo]\nseed: x": "my.yaml:4:1: seed: must be a whole number",
    "data: {held_out: 0, format: csv}\nstages: 3": "my.yaml:3:21: data.format: must be",
    "ppo: {kl-coef: 1}": "my.yaml:3:7: ppo.kl-coef: unknown key",
    "evaluate: 3": "my.yaml:3:1: evaluate: must be a section",
}


def complaints(text: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> list[str]:
    Path("my.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", *command.split()])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == ExitCode.BAD_INPUT
    return capsys.readouterr().err.splitlines()


def test_all_mistakes_at_once(tmp_path, monkeypatch, capsys) -> None:
    """Of settings, between settings of a section and of several, of the files and of the judges: in reading order."""
    monkeypatch.chdir(tmp_path)
    found = complaints(EVERYTHING, "validate my.yaml seed=-1", monkeypatch, capsys)
    expected = [
        "my.yaml:1:1: name: must be up to 64 letters",
        "my.yaml:4:8: data.prompts: gone.jsonl: file not found",
        "my.yaml:5:1: sft: `adapter` and `source: adapter` must be set together",
        "my.yaml:6:10: sample.max_new_tokens (600) must be below model.max_length (512)",
        "my.yaml:7:8: rank.judge: unknown judge 'robot'",
        "my.yaml:8:10: reward: margin (1) requires `loss: pairwise`",
        "my.yaml:9:17: ppo: minibatches (5) must divide batch_size (64)",
        "my.yaml:9:33: ppo: critic_warmup_steps (9) must be below steps (5)",
        "my.yaml:10:37: evaluate.promts: unknown key",
        'override "seed=-1": seed: must be at least 0, not -1',
    ]
    assert [line[: len(words)] for line, words in zip(found, expected, strict=True)] == expected


def test_a_wrong_setting_hides_no_contradiction_of_others_beside_it(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    text = "name: a\nmodel: {source: x, sorce: y}\nppo: {batch_size: 8, minibatches: 3, learning_rate: fast, step: 3}\n"
    found = complaints(text, "validate my.yaml", monkeypatch, capsys)
    assert [line.partition(",")[0] for line in found] == [
        'my.yaml:2:20: model.sorce: unknown key. Did you mean "source"?',
        "my.yaml:3:22: ppo: minibatches (3) must divide batch_size (8)",
        "my.yaml:3:38: ppo.learning_rate: must be a number",
        'my.yaml:3:59: ppo.step: unknown key. Did you mean "steps"?',
    ]


@pytest.mark.parametrize("text", NOTHING_ELSE, ids=lambda text: text[:40])
def test_a_mistake_breeds_no_others(text, tmp_path, monkeypatch, capsys) -> None:
    """What follows from a setting's default in the place of a wrong one is not said."""
    monkeypatch.chdir(tmp_path)
    first, *others = complaints(f"name: a\nmodel: {{source: x}}\n{text}\n", "validate my.yaml", monkeypatch, capsys)
    assert first.startswith(NOTHING_ELSE[text])
    own = ("my.yaml:4:1: model2: unknown key", "my.yaml:4:1: stages: must be a list")
    assert [line for line in others if not line.startswith(own)] == []


def test_without_model_and_name_the_rest_is_checked(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    found = complaints("sft: {source: adapter}\nrank: {judge: robot}\n", "validate my.yaml", monkeypatch, capsys)
    assert [line.split(";")[0] for line in found] == [
        "my.yaml: model: missing",
        "my.yaml: name: missing",
        "my.yaml:1:1: sft: `adapter` and `source: adapter` must be set together",
        "my.yaml:2:8: rank.judge: unknown judge 'robot'",
    ]
