"""The commands as people and programs use them: what they print, where, and the exit code."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
from platforms import posix
from rich.console import Console

from lowrank_rlhf import __version__, cli
from lowrank_rlhf.commands import getting_started
from lowrank_rlhf.commands.common import EXIT_CODES
from lowrank_rlhf.commands.terminal import run_states
from lowrank_rlhf.config import loading
from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.dashboard.run_status import RunStatus
from lowrank_rlhf.errors import ExitCode, StaleRun
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.pipeline.fingerprint import fingerprint
from lowrank_rlhf.run.directory import RunDir

GOOD = "name: a\nmodel: {source: x}\n"
HEAVY = ("torch", "gradio", "transformers", "trl", "peft", "bitsandbytes", "datasets", "matplotlib")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text(GOOD)
    Path("bad.yaml").write_text(GOOD + "ppo:\n  kl_coeff: 1\nlora: {rank: '[red]'}\n")
    Path("presets").mkdir()
    Path("presets/quickstart.yaml").write_text("# A run of a minute.\n# More words.\n" + GOOD)
    Path("presets/gpu.yaml").write_text(GOOD)
    monkeypatch.setattr(loading, "preset_folder", lambda: tmp_path / "presets")


def process(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT
    )


def a_run(folder: Path = Path("runs/a")) -> RunDir:
    """A run whose first stage is done."""
    config = Config(name="a", model={"source": "x"})
    run_dir = RunDir(folder)
    run_dir.open(dump_config(config))
    stage = pipeline.stages_of(config)[0]
    (run_dir.work("sft") / "adapters" / "sft").mkdir(parents=True)
    summary = {"loss": 1.2345, "tokens_per_second": 340, "finished": True, "note": "[b]", "message": "sft [red] done"}
    mark = {
        "fingerprint": fingerprint(stage, config, {}).model_dump(),
        "summary": summary,
        "seconds": 62.0,
        "peak_memory_bytes": 3 * 2**29,
    }
    run_dir.finish("sft", stage.writes, mark)
    return run_dir


class TestValidate:
    def test_good(self, command) -> None:
        assert command("validate", "good.yaml") == (0, "ok: sft, sample, rank, reward, ppo, evaluate\n", "")
        assert command("validate", "quickstart", "stages=[sft, sample]")[1] == "ok: sft, sample\n"

    def test_what_the_run_has_done_already_is_there(self, command) -> None:
        a_run()
        assert command("validate", "good.yaml", "stages=[sample]") == (0, "ok: sample\n", "")
        assert command("validate", "good.yaml", "stages=[sample]", "--runs", "other")[0] == 2
        assert command("validate", "good.yaml", "stages=[sample]", "name=b")[2] == (
            'override "stages=[sample]": stages: sample reads adapters/sft, which is not in runs/b; '
            "stage sft makes it: add sft to `stages`\n"
        )
        folder = Path("runs/a/adapters/sft")
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / name).write_text("")
        assert command("validate", "good.yaml", "name=b", "sft.source=adapter", f"sft.adapter={folder}")[0] == 0
        rows = [{"prompt": f"p{number}", "chosen": "a", "rejected": "b"} for number in range(2)]
        Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = ("rank.source=dataset", "rank.dataset=pairs.jsonl", "sft.source=base")
        assert command("validate", "good.yaml", "name=b", *given)[:2] == (0, "ok: sft, rank, reward, ppo, evaluate\n")

    def test_a_run_that_was_copied_by_hand_is_not_taken_for_the_original(self, command) -> None:
        a_run().event("started")
        shutil.copytree("runs/a", "runs/copy")
        code, _, err = command("validate", "runs/copy/config.yaml")
        assert (code, err) == (
            2,
            'runs/copy/config.yaml: the config names the run "a", but its folder is "copy". '
            "To work on this folder, add name=copy --runs runs\n",
        )
        Path("link").symlink_to("runs/a")
        assert command("validate", "link/config.yaml")[0] == 0
        for given in (["runs/copy/config.yaml", "name=copy"], ["runs/a/config.yaml"], ["runs/a/config.yaml", "name=b"]):
            assert command("validate", *given)[0] == 0

    def test_bad(self, command) -> None:
        code, out, err = command("validate", "bad.yaml", "seed=-1")
        assert (code, out) == (2, "")
        assert err.splitlines() == [
            'bad.yaml:4:3: ppo.kl_coeff: unknown key. Did you mean "kl_coef"?',
            'bad.yaml:5:8: lora.rank: must be a whole number, not "[red]"',
            'override "seed=-1": seed: must be at least 0, not -1',
        ]

    def test_json(self, command) -> None:
        code, out, _ = command("validate", "good.yaml", "stages=[sft]", "--json")
        assert code == 0
        shown = {"ok": True, "name": "a", "stages": ["sft"], "not_read": [], "notes": [], "rewards": []}
        assert json.loads(out) == shown
        code, out, err = command("validate", "bad.yaml", "--json")
        assert (code, err) == (2, "")
        assert json.loads(out)["ok"] is False
        assert len(json.loads(out)["errors"]) == 2


class TestPresets:
    def test_list(self, command) -> None:
        assert command("presets") == (0, "gpu\nquickstart  A run of a minute.\n", "")

    def test_show(self, command) -> None:
        assert command("presets", "show", "quickstart")[1] == Path("presets/quickstart.yaml").read_text()
        code, _, err = command("presets", "show", "quick")
        assert code == 2
        assert 'Did you mean "quickstart"?' in err

    def test_a_copy_names_the_same_schema(self, command) -> None:
        Path("presets/gpu.yaml").write_text(f"# yaml-language-server: $schema=../docs/config.schema.json\n{GOOD}")
        Path("mine").mkdir()
        for name, schema in (("my.yaml", "docs/config.schema.json"), ("mine/my.yaml", "../docs/config.schema.json")):
            assert command("presets", "copy", "gpu", name)[0] == 0
            assert Path(name).read_text().startswith(f"# yaml-language-server: $schema={schema}\n")

    def test_copy_replaces_nothing(self, command) -> None:
        assert command("presets", "copy", "gpu") == (0, "wrote gpu.yaml\n", "")
        assert Path("gpu.yaml").read_text() == GOOD
        assert command("presets", "copy", "quickstart", "gpu.yaml") == (
            2,
            "",
            "gpu.yaml already exists; choose another name\n",
        )
        assert Path("gpu.yaml").read_text() == GOOD
        assert command("presets", "copy", "gpu", "no/folder.yaml")[0] == 2

    def test_none(self, command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(getting_started, "preset_names", list)
        assert command("presets")[0] == 2


class TestStatus:
    def test_table(self, command) -> None:
        a_run()
        code, out, _ = command("status", "a")
        rows = [line.split() for line in out.splitlines()]
        assert code == 0
        assert rows[1] == ["sft", "done", "1:02", "1.5", "GiB", "loss", "1.23,", "340", "tokens/s"]
        assert rows[2] == ["sample", "to", "do"]

    def test_json_and_a_path(self, command) -> None:
        a_run(Path("elsewhere/b"))
        code, out, _ = command("status", "elsewhere/b", "--json")
        stages = json.loads(out)["stages"]
        assert code == 0
        assert [row["state"] for row in stages] == ["done"] + ["to do"] * 5
        assert stages[0]["seconds"] == 62.0

    def test_says_why_a_stage_is_stale(self, command) -> None:
        path = a_run().path / "config.yaml"
        path.write_text(path.read_text().replace("epochs: 2", "epochs: 3"))
        _, out, _ = command("status", "a")
        assert "sft: sft.epochs: 2 -> 3" in out.splitlines()

    def test_without_a_run_all_are_listed(self, command) -> None:
        for options in ([], ["--watch"]):
            none = "There are no runs in runs yet. Name their folder with --runs\n"
            assert command("status", *options) == (0, none, "")
        for name in "ab":
            a_run(Path("runs") / name)
        code, out, _ = command("status")
        assert code == 0
        assert sorted(line.split()[:2] for line in out.splitlines()[1:]) == [["a", "new"], ["b", "new"]]
        listed = json.loads(command("status", "--json")[1])
        assert [(run["state"], run["done"]) for run in listed] == [("new", ["sft"])] * 2

    def test_watching_ends_with_the_run_and_prints_changes_only(self, capsys, monkeypatch) -> None:
        seen = [RunStatus("a", Path("a"), state, ["sft"], "sft") for state in ("running", "running", "stopped")]
        slept, looks = [], iter(seen)
        monkeypatch.setattr(run_states.time, "sleep", slept.append)
        run_states._watch(lambda: [next(looks)], lambda found: run_states._table(found, {"a": ()}))
        assert capsys.readouterr().out == "a: running · sft\na: stopped · sft\n"
        assert slept == [5.0, 5.0]
        monkeypatch.setattr(run_states, "Console", partial(Console, force_terminal=True))
        looks = iter(seen)
        run_states._watch(lambda: [next(looks)], lambda found: run_states._table(found, {"a": ()}))
        assert slept[2:] == [2.0, 2.0]
        assert capsys.readouterr().out.count("\x1b[2K") >= 2  # lines drawn again in place

    def test_watching_a_run_shows_its_stages_once_if_it_has_ended(self, command) -> None:
        a_run()
        assert command("status", "a", "--watch") == (0, "a: new · sample\n", "")
        assert command("status", "a", "--watch", "--json")[0] == 2

    def test_unknown_run(self, command) -> None:
        assert command("status", "ab") == (2, "", 'run "ab" not found in runs. There are no runs yet.\n')
        a_run(Path("runs/abc"))
        assert command("status", "ab")[2] == 'run "ab" not found in runs. Existing runs: abc. Did you mean "abc"?\n'


class TestRun:
    def test_prints_the_last_message_as_it_is_and_the_folder(self, command, monkeypatch) -> None:
        seen = {}

        def run(config: Config, runs: Path, **options: object) -> RunDir:
            seen.update(options, config=config, runs=runs)
            return a_run()

        monkeypatch.setattr(pipeline, "run", run)
        code, out, _ = command(
            "run", "good.yaml", "seed=3", "--runs", "r", "--until", "sft", "--redo", "sft", "--redo", "ppo"
        )
        assert (code, out) == (0, f"sft [red] done\nRun folder: {Path('runs/a')}\n")
        assert (seen["config"].seed, seen["runs"], seen["until"], seen["redo"]) == (3, Path("r"), "sft", ["sft", "ppo"])

    def test_a_bad_config_starts_nothing(self, command) -> None:
        assert command("run", "bad.yaml")[0] == 2
        assert not Path("runs").exists()

    @pytest.mark.parametrize("error", [StaleRun("[b]it is stale"), KeyboardInterrupt()])
    def test_errors_are_messages_with_their_code(self, command, monkeypatch, error: BaseException) -> None:
        def run(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(pipeline, "run", run)
        code, _, err = command("run", "good.yaml")
        expected = (3, "[b]it is stale\n") if isinstance(error, StaleRun) else (130, err)
        assert (code, err) == expected
        assert "Traceback" not in err

    def test_a_bug_shows_its_traceback(self, monkeypatch) -> None:
        monkeypatch.setattr(sys, "argv", ["lowrank-rlhf", "run", "good.yaml"])
        monkeypatch.setattr(pipeline, "run", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cli.main()


SLOW_STAGE = """
import sys, time
from lowrank_rlhf import cli, stages
class Slow(stages.Stage):
    @property
    def run(self):
        def run(session):
            with session.progress.track("sft", 1000, "steps") as bar:
                for step in range(1000):
                    time.sleep(0.01)
                    bar.advance()
                    session.stop.check(f"step {step} is saved")
        return run
stages.STAGES = (Slow("sft", "sleep", ("sft",), (), ("x",)),)
sys.argv = ["lowrank-rlhf", "run", "good.yaml"]
cli.main()
"""


@posix
def test_ctrl_c_ends_a_real_run_with_its_code_and_the_way_on() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_STAGE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as running:
        assert running.stdout.readline().startswith("[1/1] sft: sleep")
        running.stdout.readline()  # the first line of the bar: the stage is at work
        time.sleep(0.1)
        second = process("-m", "lowrank_rlhf", "run", "good.yaml")
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
    assert (second.returncode, f"process {running.pid} " in second.stderr) == (ExitCode.LOCKED, True)
    assert running.returncode == ExitCode.STOPPED
    assert "is saved. To resume, rerun the same command." in err
    assert "Traceback" not in err


@posix
def test_a_run_whose_process_was_killed_is_free_for_the_next() -> None:
    for _ in range(2):  # the second is not refused with exit code 6
        with subprocess.Popen(
            [sys.executable, "-c", SLOW_STAGE], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        ) as running:
            assert running.stdout.readline().startswith("[1/1] sft: sleep")
            running.kill()
        assert running.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["validate", "good.yaml"],
        ["status", "a"],
        ["status"],
        ["compare", "a"],
        ["presets"],
        ["doctor"],
        ["schema"],
    ],
)
def test_looking_imports_nothing_heavy(arguments: list[str]) -> None:
    a_run()
    look = f"""
import sys
from lowrank_rlhf import cli
sys.argv = ["lowrank-rlhf", *{arguments}]
try:
    cli.main()
finally:
    print([name for name in {HEAVY} if name in sys.modules])
"""
    assert process("-c", look).stdout.splitlines()[-1] == "[]"


def test_help_is_quick_and_says_what_it_should() -> None:
    began = os.times()
    done = process("-m", "lowrank_rlhf", "--help")
    ended = os.times()
    spent = ended.children_user + ended.children_system - began.children_user - began.children_system
    assert spent < 2  # CPU seconds: a busy machine is not this command's fault
    assert done.returncode == 0
    for code in ExitCode:
        assert f"{int(code):>3}  {EXIT_CODES[code]}" in done.stdout


def commands(words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The words of every command and group under one, itself first."""
    inner = getattr(found(words), "commands", {})
    return [words, *(deeper for name in inner for deeper in commands((*words, name)))]


def found(words: Sequence[str]) -> Any:
    """The command or group of those words."""
    entry: Any = typer.main.get_command(cli.app)
    for word in words:
        entry = entry.commands[word]
    return entry


def test_the_walk_finds_every_command() -> None:
    groups = {
        "presets": ("show", "copy"),
        "data": ("inspect",),
        "annotations": ("export", "import", "exclude", "invite", "checks", "disputes", "decide"),
    }
    alone = [
        "run",
        "plan",
        "validate",
        "status",
        "sweep",
        "compare",
        "label",
        "chat",
        "evaluate",
        "export",
        "push",
        "doctor",
        "schema",
        "dashboard",
    ]
    expected = {(), *((name,) for name in (*alone, *groups))}
    expected |= {(group, name) for group, names in groups.items() for name in names}
    assert set(commands()) == expected


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_help_has_examples_that_parse_and_only_the_root_exit_codes(command, words: tuple[str, ...]) -> None:
    code, out, _ = command(*words, "--help")
    assert code == 0
    text, _, codes = out.partition("Exit codes:\n")
    summaries = text.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert not [line for line in summaries if line.endswith("...")]  # cut off at the terminal's width
    in_root = [] if words else [[str(int(code)), meaning] for code, meaning in EXIT_CODES.items()]
    assert [line.split(None, 1) for line in codes.splitlines() if line] == in_root
    examples = [line.strip() for line in text.split("Examples:\n")[1].split("\n\n")[0].splitlines()]
    assert examples
    for example in examples:
        assert "python -m lowrank_rlhf" in example
        given = shlex.split(example.partition(" > ")[0].partition("python -m lowrank_rlhf")[2])
        entry, rest = found(()), list(given)
        while rest and rest[0] in getattr(entry, "commands", {}):
            entry = entry.commands[rest.pop(0)]
        assert tuple(given[: len(words)]) == words
        entry.make_context("x", rest)  # raises for an option, a choice or an argument that does not exist


def test_usage_errors_and_version(command) -> None:
    assert command("run")[0] == 2
    assert command("walk")[0] == 2
    assert command("--version") == (0, f"lowrank_rlhf {__version__}\n", "")
