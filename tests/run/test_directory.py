"""A run's folder: what is declared finished is there, whenever the process dies."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from marks import done
from platforms import posix

from lowrank_rlhf.errors import RunLocked, StaleRun, UserError
from lowrank_rlhf.run import directory
from lowrank_rlhf.run.checkpoints import latest_checkpoint, save_checkpoint
from lowrank_rlhf.run.directory import RunDir, check_adapter
from lowrank_rlhf.run.files import sha256, write_json_atomic
from lowrank_rlhf.run.step_log import StepLog

WRITES = ("adapters/sft", "report.md")
MARK = {
    "schema": 1,
    "stage": "sft",
    "fingerprint": {"settings": {}, "inputs": {}},
    "seconds": 1.0,
    "summary": {},
}
NEW = "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437"  # printf new | sha256sum
KILLED = 9


def fill(run: RunDir, text: str = "new") -> None:
    """Writes a stage's outputs and some rubbish into its work folder."""
    work = run.work("sft")
    (work / "adapters/sft/deep").mkdir(parents=True)
    for name in ("adapters/sft/a.bin", "adapters/sft/deep/b.bin", "report.md", "rubbish"):
        (work / name).write_text(text)


def contents(run: RunDir) -> list[str | None]:
    paths = [run.artifact(name) for name in ("adapters/sft/a.bin", "adapters/sft/deep/b.bin", "report.md")]
    return [path.read_text() if path.exists() else None for path in paths]


def in_a_dying_process(act: Callable[[], object], calls: int) -> int:
    """Fork, and die without a goodbye at the given call that changes the disk's names; 0 if it lived to the end."""
    child = os.fork()
    if child == 0:
        left = calls

        def deadly(call: Callable) -> Callable:
            def counted(*arguments, **named):
                nonlocal left
                if left == 0:
                    os._exit(KILLED)
                left -= 1
                return call(*arguments, **named)

            return counted

        for name in ("replace", "unlink", "rmdir", "fsync", "mkdir"):
            setattr(os, name, deadly(getattr(os, name)))
        try:
            act()
        finally:  # an exception must not bring the child back into pytest
            os._exit(1 if sys.exc_info()[0] else 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_finish_moves_the_outputs_marks_the_stage_and_clears_up(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    fill(run)
    run.finish("sft", WRITES, MARK)
    assert contents(run) == ["new"] * 3
    sums = {
        name: {"bytes": 3, "sha256": NEW} for name in ("adapters/sft/a.bin", "adapters/sft/deep/b.bin", "report.md")
    }
    assert done(run, "sft") == MARK | {"outputs": sums, "logs": {}}
    assert done(run, "ppo") is None
    assert list((tmp_path / "work").iterdir()) == []


def test_an_adapter_inside_another_is_checked_by_itself(tmp_path: Path) -> None:
    """As the policies of earlier steps in `adapters/policy-last`."""
    run = RunDir(tmp_path)
    fill(run)
    run.finish("sft", WRITES, MARK)
    (run.artifact("adapters/sft") / "a.bin").write_text("odd")
    check_adapter(run.artifact("adapters/sft/deep"))
    (run.artifact("adapters/sft/deep") / "b.bin").write_text("odd")
    with pytest.raises(StaleRun, match=r"adapters/sft/deep/b\.bin does not match"):
        check_adapter(run.artifact("adapters/sft/deep"))


def test_finish_replaces_older_outputs(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for text in ("old", "new"):
        fill(run, text)
        run.finish("sft", WRITES, MARK)
    assert contents(run) == ["new"] * 3


def test_finish_names_what_is_missing_and_moves_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    fill(run)
    with pytest.raises(RuntimeError, match=r"stage sft did not write eval\.jsonl, adapters/x into"):
        run.finish("sft", (*WRITES, "eval.jsonl", "adapters/x"), MARK)
    assert contents(run) == [None] * 3
    assert run.recover() == []


@posix
def test_finish_may_be_killed_at_any_point(tmp_path: Path) -> None:
    states = set()
    for calls in range(1000):
        folder = tmp_path / str(calls)
        run = RunDir(folder)
        fill(run, "old")
        run.finish("sft", WRITES, MARK | {"made": "old"})
        (folder / "done" / "sft.json").unlink()  # as a redo leaves it
        fill(run, "new")
        status = in_a_dying_process(lambda run=run: run.finish("sft", WRITES, MARK | {"made": "new"}), calls)
        made = done(run, "sft")
        if made:  # a mark is there: so are the outputs
            assert made["made"] == "new"
            assert contents(run) == ["new"] * 3
        recovered = run.recover()
        if done(run, "sft") is None:  # died before the outputs were safe: nothing was touched, and it can finish yet
            assert not recovered
            assert contents(run) == ["old"] * 3
            run.finish("sft", WRITES, MARK | {"made": "new"})
        assert contents(run) == ["new"] * 3
        assert done(run, "sft").items() >= (MARK | {"made": "new"}).items()
        assert list((folder / "work").iterdir()) == []
        states.add((made is not None, bool(recovered)))
        shutil.rmtree(folder)
        if status == 0:
            break
        assert status == KILLED
    # Killed before anything counted, between the moves, and after the mark with and without work left over.
    assert states == {(False, False), (False, True), (True, True), (True, False)}


@posix
def test_recover_may_be_killed_too(tmp_path: Path) -> None:
    for calls in range(1000):
        run = RunDir(tmp_path / str(calls))
        fill(run)
        write_json_atomic(run.work("sft") / "finish.json", {"writes": WRITES, "mark": MARK})
        status = in_a_dying_process(run.recover, calls)
        run.recover()
        assert contents(run) == ["new"] * 3
        assert done(run, "sft") == MARK
        if status == 0:
            break


def test_a_stage_is_set_aside_and_only_that(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    fill(run)
    run.finish("sft", WRITES, MARK)
    run.work("sft")
    other = run.work("ppo")
    log = StepLog(tmp_path / "metrics.jsonl")
    log.append("sft", 0, loss=1)
    log.append("ppo", 0, loss=2)
    run.earlier.set_aside({"sft": WRITES})
    assert done(run, "sft") is None
    assert contents(run) == [None] * 3
    assert not run.work_path("sft").exists()
    assert other.exists()
    assert [row["stage"] for row in log.read()] == ["ppo"]
    run.earlier.set_aside({"sft": WRITES})  # nothing is there: nothing to do
    assert run.earlier.stages() == ["sft"]


def test_results_set_aside_come_back_or_go_with_the_new_ones(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    log = StepLog(tmp_path / "metrics.jsonl")
    run.open("name: old\n")
    fill(run)
    log.append("sft", 0, loss=1)
    run.finish("sft", WRITES, MARK)
    mark = done(run, "sft")
    run.earlier.set_aside({"sft": WRITES})
    run.open("name: new\n")
    fill(run, "half")
    log.append("sft", 0, loss=9)
    assert run.earlier.put_back() == ["sft"]
    assert (contents(run), done(run, "sft")) == (["new"] * 3, mark)
    assert [row["loss"] for row in log.read("sft")] == [1]
    assert (tmp_path / "config.yaml").read_text() == "name: old\n"
    assert not run.work_path("sft").exists()
    assert (run.earlier.put_back(), run.faults("sft"), run.log_faults("sft")) == ([], [], [])
    assert not (tmp_path / "before").exists()
    run.earlier.set_aside({"sft": WRITES})
    fill(run, "newer")
    run.earlier.drop_if_replaced(["sft", "ppo", "evaluate"])
    assert run.earlier.stages() == ["sft"]
    run.finish("sft", WRITES, MARK)
    run.earlier.drop_if_replaced(["sft", "ppo", "evaluate"])
    assert (contents(run), run.earlier.put_back()) == (["newer"] * 3, [])
    assert not (tmp_path / "before").exists()


def test_a_second_redo_keeps_the_first_ones_earlier_results(tmp_path: Path) -> None:
    """One generation: what the run had before the first redo, unfinished work included."""
    run, work = RunDir(tmp_path), RunDir(tmp_path).work("ppo")
    log = StepLog(tmp_path / "metrics.jsonl")
    run.open("name: old\n")
    fill(run)
    log.append("sft", 0, text="old\u2028\x85\x0c")
    run.finish("sft", WRITES, MARK)
    mark = done(run, "sft")
    (work / "step").write_text("old")
    log.append("ppo", 0, loss=1)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    for again in ("new", "newer"):
        run.earlier.set_aside({"sft": WRITES, "ppo": ["ppo.txt"], "evaluate": ["evaluate.txt"]})
        assert run.earlier.stages() == ["sft", "ppo"]
        run.open(f"name: {again}\n")
        fill(run, again)
        log.append("sft", 0, loss=9)
        run.finish("sft", WRITES, MARK)
        (run.work("ppo") / "step").write_text(again)
        (run.work("evaluate") / "evaluate.txt").write_text("first")
        run.finish("evaluate", ["evaluate.txt"], MARK | {"stage": "evaluate", "summary": {"prompts": 1}})
        run.earlier.drop_if_replaced(["sft", "ppo", "evaluate"])  # ppo is not done again
    assert run.earlier.put_back() == ["sft", "ppo"]
    assert (contents(run), done(run, "sft")) == (["new"] * 3, mark)
    assert (work / "step").read_text() == "old"
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert (tmp_path / "config.yaml").read_text() == "name: old\n"
    assert (done(run, "evaluate"), run.artifact("evaluate.txt").exists()) == (None, False)
    assert run.damage() == []


@pytest.mark.parametrize("file", ["files/report.md", "moved.json"])
def test_earlier_results_of_another_version_are_neither_deleted_nor_mixed(tmp_path: Path, file: str) -> None:
    run = RunDir(tmp_path)
    kept = tmp_path / "before" / "sft" / file
    kept.parent.mkdir(parents=True)
    kept.write_text("old")
    run.recover()
    run.earlier.drop_if_replaced(["sft"])
    assert kept.read_text() == "old"
    with pytest.raises(UserError, match=rf"{tmp_path}/before: .*another version\. .*move the folder away"):
        run.earlier.check()
    shutil.rmtree(folder := tmp_path / "before" / "sft")
    folder.mkdir()
    (folder / "metrics.jsonl").touch()  # copied by a process that was killed before its record
    run.earlier.check()
    run.earlier.drop_if_replaced(["sft"])
    assert not (tmp_path / "before").exists()


def test_earlier_results_wait_for_the_config_s_stages_only(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    fill(run)
    run.finish("sft", WRITES, MARK)
    (run.work("ppo") / "step").write_text("old")
    run.earlier.set_aside({"sft": WRITES, "ppo": ["ppo.txt"]})
    fill(run)
    run.finish("sft", WRITES, MARK)
    for others in (["sft", "ppo"], ["evaluate"], []):  # a config with none of them replaces nothing
        run.earlier.drop_if_replaced(others)
        assert run.earlier.stages() == ["sft", "ppo"]
    run.earlier.drop_if_replaced(["sft", "evaluate"])
    assert not (tmp_path / "before").exists()


@posix
def test_setting_aside_may_be_killed(tmp_path: Path) -> None:
    """No mark without outputs, and the results come back from any state."""
    for calls in range(1000):
        run = RunDir(tmp_path / str(calls))
        fill(run)
        run.finish("sft", WRITES, MARK)
        mark = done(run, "sft")
        status = in_a_dying_process(lambda run=run: run.earlier.set_aside({"sft": WRITES}), calls)
        assert done(run, "sft") is None or contents(run) == ["new"] * 3
        run.recover()
        if done(run, "sft") is None:
            assert contents(run) == [None] * 3
            assert run.earlier.put_back() == ["sft"]
        assert (contents(run), done(run, "sft")) == (["new"] * 3, mark)
        if status == 0:
            break


@posix
def test_putting_back_may_be_killed_too(tmp_path: Path) -> None:
    for calls in range(1000):
        run = RunDir(tmp_path / str(calls))
        fill(run)
        run.finish("sft", WRITES, MARK)
        mark = done(run, "sft")
        run.earlier.set_aside({"sft": WRITES})
        fill(run, "half")
        status = in_a_dying_process(run.earlier.put_back, calls)
        assert done(run, "sft") is None or contents(run) == ["new"] * 3
        run.recover()
        run.earlier.put_back()
        assert (contents(run), done(run, "sft")) == (["new"] * 3, mark)
        assert not (run.path / "before").exists()
        if status == 0:
            break


def test_open_records_config_and_software_but_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    run = RunDir(tmp_path / "runs" / "a")
    run.open("name: ü\n")
    assert (run.path / "config.yaml").read_text(encoding="utf-8") == "name: ü\n"
    text = (run.path / "env.json").read_text()
    assert "hf_secret" not in text
    environment = json.loads(text)
    assert environment["schema"] == 1
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(environment["packages"]) == {"torch", "transformers", "peft", "trl", "bitsandbytes"}


def test_json_is_replaced_and_never_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json_atomic(path, {"a": math.inf})
    with path.open() as reader:  # whoever has it open goes on reading the old one, whole
        write_json_atomic(path, {"a": [1, math.nan]})
        assert json.load(reader) == {"a": None}
    assert json.loads(path.read_text()) == {"a": [1, None]}
    with pytest.raises(TypeError):
        write_json_atomic(path, {"a": object()})
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_events_carry_their_time(tmp_path: Path) -> None:
    RunDir(tmp_path).event("started", stage="sft")
    (event,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert (event["kind"], event["stage"]) == ("started", "sft")
    assert event["time"].endswith("+00:00")


def test_an_output_whose_name_begins_alike_is_another_one(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    names = ["adapters/policy", "adapters/policy-last"]
    for name in names:
        (run.work("sft") / name).mkdir(parents=True)
        (run.work("sft") / name / "weights").write_text("weights")
    run.finish("sft", names, {"fingerprint": {"settings": {}, "inputs": {}}, "summary": {}, "seconds": 1.0})
    run.artifact("adapters/policy-last/weights").write_text("changed")
    assert run.faults("sft", ["adapters/policy"]) == []
    run.check_outputs("adapters/policy")
    for chosen in (["adapters/policy-last"], ["adapters"], ["adapters/policy-last/weights"], None):
        assert len(run.faults("sft", chosen)) == 1


HOLD = """
import sys, time
from pathlib import Path
from lowrank_rlhf.run.directory import RunDir
with RunDir(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_locked_out_until_the_first_dies(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "a")
    root = Path(directory.__file__).parents[2]
    command = [sys.executable, "-c", HOLD, run.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunLocked, match=rf"in use by process {holder.pid} since 20..-..-..T"), run.lock():
            pass
        holder.kill()
    with run.lock(), pytest.raises(RunLocked, match=f"process {os.getpid()} "), RunDir(run.path).lock():
        pass
    with run.lock():
        pass
    assert not (run.path / "run.lock.json").exists()


def test_a_run_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="cannot create the run folder"), RunDir(tmp_path / "runs" / "a").lock():
        pass


class TestHashes:
    def test_of_files_and_folders_that_exist(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("abc")
        (tmp_path / "b" / "c").mkdir(parents=True)
        (tmp_path / "b" / "c" / "d").write_text("abc")
        hashes = RunDir(tmp_path).hashes(["a", "b", "none"])
        assert set(hashes) == {"a", "b"}
        # FIPS 180-2, appendix B.1
        assert hashes["a"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

    def test_of_a_folder_sees_contents_names_and_depth(self, tmp_path: Path) -> None:
        def folder(**files: str) -> str:
            shutil.rmtree(tmp_path / "x", ignore_errors=True)
            for name, text in files.items():
                path = tmp_path / "x" / name.replace("__", "/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return sha256(tmp_path / "x")

        first = folder(a="1", b="2")
        assert folder(b="2", a="1") == first
        assert len({first, folder(a="2", b="1"), folder(a="1"), folder(a="1", c="2"), folder(a="1", d__b="2")}) == 5


class TestStepLog:
    def test_rows_come_back_by_stage_and_nan_as_null(self, tmp_path: Path) -> None:
        log = StepLog(tmp_path / "metrics.jsonl")
        assert list(log.read()) == []
        log.append("sft", 1, loss=2.5)
        log.append("ppo", 1, kl=math.nan, ratio=[math.inf, 1.0])
        assert list(log.read("sft")) == [{"stage": "sft", "step": 1, "loss": 2.5}]
        assert list(log.read())[1] == {"stage": "ppo", "step": 1, "kl": None, "ratio": [None, 1.0]}

    def test_a_torn_line_costs_only_itself(self, tmp_path: Path) -> None:
        log = StepLog(tmp_path / "metrics.jsonl")
        log.append("sft", 1)
        with log.path.open("ab") as file:
            file.write('5\n{"step": 3}\n{"stage": "sft"}\n{"stage": "sft", "step": 2, "x": "ü'.encode()[:-1])
        log.append("sft", 2)
        assert [row["step"] for row in log.read()] == [1, 2]

    def test_truncate_drops_only_later_rows_of_that_stage(self, tmp_path: Path) -> None:
        log = StepLog(tmp_path / "metrics.jsonl")
        log.truncate("sft", 0)  # no file yet
        for step in (1, 2, 3):
            log.append("sft", step)
            log.append("ppo", step)
        log.truncate("sft", 2)
        assert [row["step"] for row in log.read("sft")] == [1, 2]
        assert [row["step"] for row in log.read("ppo")] == [1, 2, 3]


class TestCheckpoints:
    def save(self, folder: Path, step: int) -> None:
        def write(path: Path) -> None:
            (path / "adapter").mkdir()
            (path / "adapter" / "weights").write_text(f"weights {step}")
            (path / "state").write_text(f"state {step}")

        save_checkpoint(folder, step, write)

    def test_the_last_two_stay(self, tmp_path: Path) -> None:
        assert latest_checkpoint(tmp_path / "none") is None
        for step in (9, 50, 100):
            self.save(tmp_path, step)
        assert latest_checkpoint(tmp_path) == (100, tmp_path / "step-000100")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000050", "step-000100"]
        manifest = json.loads((tmp_path / "step-000100" / "manifest.json").read_text())
        assert (manifest["schema"], manifest["step"]) == (1, 100)
        assert set(manifest["files"]) == {"adapter/weights", "state"}
        assert manifest["bytes"] == {"adapter/weights": 11, "state": 9}

    def test_a_failed_write_leaves_the_one_before(self, tmp_path: Path) -> None:
        self.save(tmp_path, 50)
        with pytest.raises(OSError, match="disk full"):
            save_checkpoint(tmp_path, 100, self.disk_full)
        assert latest_checkpoint(tmp_path) == (50, tmp_path / "step-000050")
        self.save(tmp_path, 100)
        assert latest_checkpoint(tmp_path) == (100, tmp_path / "step-000100")

    @staticmethod
    def disk_full(path: Path) -> None:
        (path / "state").write_text("half")
        raise OSError("disk full")

    @pytest.mark.parametrize(
        ("damage", "description"),
        [
            ("flip", "state does not match its recorded sha256"),
            ("truncate", "state is 3 bytes instead of 9"),
            ("lose", "adapter/weights is missing"),
            ("both", "adapter/weights is missing; state is 0 bytes instead of 9"),
            ("cut manifest", "manifest.json is missing or cut short"),
            ("no manifest", "manifest.json is missing or cut short"),
            ("empty manifest", "manifest.json is missing or cut short"),
        ],
    )
    def test_a_damaged_one_is_set_aside_by_name_and_the_one_before_taken(
        self, tmp_path: Path, damage: str, description: str
    ) -> None:
        self.save(tmp_path, 50)
        self.save(tmp_path, 100)
        newest = tmp_path / "step-000100"
        manifest = newest / "manifest.json"
        {
            "flip": lambda: (newest / "state").write_text("state 101"),
            "truncate": lambda: os.truncate(newest / "state", 3),
            "both": lambda: ((newest / "adapter" / "weights").unlink(), os.truncate(newest / "state", 0)),
            "lose": lambda: (newest / "adapter" / "weights").unlink(),
            "cut manifest": lambda: manifest.write_text(manifest.read_text()[:-20]),
            "no manifest": manifest.unlink,
            "empty manifest": lambda: manifest.write_text("{}"),
        }[damage]()
        with pytest.warns(UserWarning, match="step-000100: damaged checkpoint") as warned:
            assert latest_checkpoint(tmp_path) == (50, tmp_path / "step-000050")
        message = f"damaged checkpoint, renamed to step-000100.damaged: {description}. The stage resumes"
        assert message in str(warned[0].message)
        assert (tmp_path / "step-000100.damaged").is_dir()

    def test_one_of_an_earlier_version_without_sizes_is_taken(self, tmp_path: Path) -> None:
        self.save(tmp_path, 50)
        path = tmp_path / "step-000050" / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["bytes"]
        path.write_text(json.dumps(manifest))
        assert latest_checkpoint(tmp_path) == (50, tmp_path / "step-000050")

    @posix
    def test_saving_may_be_killed_at_any_point(self, tmp_path: Path) -> None:
        seen = set()
        for calls in range(1000):
            folder = tmp_path / str(calls)
            self.save(folder, 50)
            status = in_a_dying_process(lambda folder=folder: self.save(folder, 100), calls)
            step, path = latest_checkpoint(folder)
            assert (path / "state").read_text() == f"state {step}"
            seen.add(step)
            if status == 0:
                break
        assert seen == {50, 100}
