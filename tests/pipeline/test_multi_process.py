"""What the main process sends to the others, and what they accept; both sides in this process."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_run import make_config

from lowrank_rlhf import stages
from lowrank_rlhf.data.right_answers import right_answers
from lowrank_rlhf.data.run_data import RunData
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.pipeline import multi_process
from lowrank_rlhf.pipeline.preflight import ADAPTER_FILES


@dataclass
class Wire:
    """One side of a group of two: the main process's messages wait for the other."""

    messages: list[bytes] = field(default_factory=list)
    is_main: bool = True
    world_size: int = 2

    @property
    def other_side(self) -> "Wire":
        return Wire(self.messages, is_main=False)

    def broadcast(self, data: bytes) -> bytes:
        if not self.is_main:
            return self.messages.pop(0)
        self.messages.append(data)
        return data

    def sum(self, number: int) -> int:
        return number


share: Any = multi_process._share_files


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def received(wire: Wire, folder: Path) -> list[str]:
    share(folder, wire.other_side)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_data_that_json_has_no_form_for_is_sent(tiny_folder, tmp_path) -> None:
    """Columns without a reader stay; of right answers the value is sent exactly."""
    answers = ["\ud800", math.inf, math.nan, "7", 0.1, 3]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(f'{{"prompt": "q {n}"}}\n' for n in range(len(answers))), encoding="utf-8")
    rewards = {"math": {"source": "exact", "column": "answer"}}
    read = RunData(make_config(tiny_folder(), path, data__held_out=2, ppo__rewards=rewards))
    names = sorted(read.prompts.places)
    fields = {
        name: {"answer": answer, "image": b"\xff", "note": "text"} for name, answer in zip(names, answers, strict=True)
    }
    read.prompts = replace(read.prompts, fields=fields)
    config = read._config
    other = RunData.received(config, read.contents)
    assert other.prompts.training == read.prompts.training
    assert {key for row in other.prompts.fields.values() for key in row} == {"answer"}
    found, wanted = (right_answers(data.prompts, config.ppo.rewards) for data in (other, read))
    assert found == wanted


def test_data_is_sent_once_and_of_an_adapter_the_two_files_that_are_read(tiny_folder, tmp_path, monkeypatch) -> None:
    adapter = write(tmp_path / "adapter", *ADAPTER_FILES, "checkpoint-9/optimizer.pt", "README.md")
    stage: Any = SimpleNamespace(shared=True, name="sft", kind="sft", run=lambda _: None)
    wire = Wire()
    session: Any = SimpleNamespace(
        group=wire,
        config=make_config(tiny_folder(), "none", sft__source="adapter", sft__adapter=str(adapter)),
        data=SimpleNamespace(contents=b"data"),
        data_is_shared=False,
        load_roles=lambda: None,
        run_dir=SimpleNamespace(run=tmp_path),
    )
    monkeypatch.setattr(multi_process, "_check_outputs", lambda *_: None)
    monkeypatch.setattr(multi_process, "_read_files", lambda *_: [])
    for number in (1, 2):
        multi_process.run_stage(stage, session)
        if number == 1:
            assert [wire.messages.pop(0) for _ in range(2)] == [session.config.model_dump_json().encode(), b"data"]
        assert received(wire, tmp_path / f"copy-{number}") == sorted(ADAPTER_FILES)
        assert received(wire, tmp_path / "nothing") == []
    assert not wire.messages


@pytest.mark.parametrize("name", ["../key", "/nowhere/key", "a/../../key"])
def test_a_name_outside_the_folder_is_refused(tmp_path, name) -> None:
    wire = Wire([json.dumps(["here", name]).encode(), b"1", b"", b"2", b""])
    with pytest.raises(UserError, match="which is outside its folder"):
        share(tmp_path / "copy", wire.other_side)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["here"]


def test_a_stage_gets_its_inputs_and_the_records_alone(tmp_path) -> None:
    wanted = ["adapters/sft/a", "env.json", "metrics.jsonl", "precision.json", "work/sample/batches.jsonl"]
    run = write(tmp_path / "run", *wanted, "invitations.json", "annotations.jsonl", "work/ppo/a", "rankings.jsonl")
    assert multi_process._read_files(stages.stage("sample"), run) == wanted


def test_a_later_round_gets_its_own_logs_too(tmp_path) -> None:
    wanted = ["metrics.jsonl", "round-2/metrics.jsonl", "round-2/samples.jsonl"]
    run = write(tmp_path / "run", *wanted, "round-2/invitations.json")
    stage = stages.in_round(stages.stage("rank"), 2)
    assert multi_process._read_files(stage, run) == wanted
