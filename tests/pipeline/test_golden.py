"""A run folder of version 0.1 (`tests/golden.py` made it) goes on working; one of a newer version is refused."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from golden import FOLDER

from lowrank_rlhf import cli
from lowrank_rlhf.run.files import SCHEMA, sha256

RUN = Path("runs/golden")
CONFIG = str(RUN / "config.yaml")
CHECKPOINT = "work/ppo/step-000001"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys) -> Command:
    """Runs a command beside a copy of the folder: its exit code, stdout and stderr."""
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, *capsys.readouterr()

    return call


def test_it_is_looked_at(command) -> None:
    code, out, err = command("status", "golden", "--json")
    assert code == 0, err
    states = {row["stage"]: row["state"] for row in json.loads(out)["stages"]}
    assert states == {
        **dict.fromkeys(("sft", "sample", "rank", "reward"), "done"),
        **{"ppo": "half done", "evaluate": "to do"},
    }
    code, out, err = command("plan", CONFIG)
    assert code == 0, err
    assert "ppo" in out


def test_it_is_exported(command) -> None:
    code, _, err = command("export", "golden", "adapters", "--what", "adapters")
    assert code == 0, err
    assert sorted(path.name for path in Path("adapters").iterdir()) == ["README.md", "reward", "sft"]
    code, _, err = command("export", "golden", "reward", "--what", "reward")
    assert code == 0, err
    assert Path("reward/model.safetensors").is_file()


def test_it_goes_on_where_it_was_stopped(command) -> None:
    before = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    code, out, err = command("run", CONFIG)
    assert code == 0, err
    assert out.count("done before, skipped") == 4
    assert "resumes after" in out
    after = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    assert after[: len(before)] == before  # nothing that it had done was done again
    assert {row["step"] for row in after if row["stage"] == "ppo"} == {0, 1, 2, 3, 4}
    page = (RUN / "report.html").read_text()
    assert "<html" in page
    # It began to select its policy on all held-out prompts, so they stay undivided, and the report says so.
    assert "The policy was selected on this report" in page
    evaluated = [json.loads(line) for line in (RUN / "eval.jsonl").read_text().splitlines()]
    assert len(evaluated) == 5
    assert (RUN / "adapters/policy/adapter_model.safetensors").is_file()
    written = [path for path in RUN.rglob("*.json") if path.name != "adapter_config.json"]  # that one is PEFT's
    assert len(written) == 9  # env, precision, six marks, reward
    assert {json.loads(path.read_text())["schema"] for path in written} == {SCHEMA}


def newer(name: str) -> str:
    """Give a file of the run the next version's number; the checkpoint's list of checksums follows."""
    path = RUN / name
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"schema": SCHEMA + 1}))
    manifest = RUN / CHECKPOINT / "manifest.json"
    listed = json.loads(manifest.read_text())
    if path.parent == manifest.parent and path != manifest:
        listed["files"][path.name] = sha256(path)
        listed["bytes"][path.name] = path.stat().st_size
        manifest.write_text(json.dumps(listed))
    return f"{path}: written by a newer version of lowrank_rlhf (schema {SCHEMA + 1}); update lowrank_rlhf"


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "golden"),
        ("plan", CONFIG),
        ("run", CONFIG),
        ("chat", "golden", "--prompt", "hello"),
        ("evaluate", "golden"),
        ("export", "golden", "out", "--what", "adapters"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_folder_of_a_newer_version_is_refused(command, arguments) -> None:
    said = newer("env.json")
    files = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    code, out, err = command(*arguments)
    assert (code, err.strip()) == (2, said)
    assert out == ""
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == files


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("done/sft.json", ("status", "golden")),
        ("work/ppo/fingerprint.json", ("run", CONFIG)),
        (f"{CHECKPOINT}/manifest.json", ("run", CONFIG)),
        (f"{CHECKPOINT}/state.json", ("run", CONFIG)),
        ("adapters/reward/reward.json", ("export", "golden", "out", "--what", "reward")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_file_of_a_newer_version_is_refused(command, name, arguments) -> None:
    said = newer(name)
    code, _, err = command(*arguments)
    assert code == 2, err
    assert said in err
    assert "Traceback" not in err
    assert (RUN / CHECKPOINT / "manifest.json").is_file()  # not set aside as damaged


def test_a_run_that_was_killed_while_it_finished_a_stage_is_refused_too(command) -> None:
    plan = RUN / "work" / "ppo" / "finish.json"
    plan.write_text(json.dumps({"schema": SCHEMA + 1, "everything": "new"}))
    code, _, err = command("run", CONFIG)
    assert code == 2, err
    assert f"{plan}: written by a newer version" in err


def test_a_neighbour_of_a_newer_version_disturbs_no_plan(command) -> None:
    shutil.copytree(RUN, "runs/other")
    newer("env.json")
    Path("mine.yaml").write_text(Path("runs/other/config.yaml").read_text().replace("name: golden", "name: other"))
    newer("done/sft.json")
    code, _, err = command("plan", "mine.yaml")
    assert code == 0, err
