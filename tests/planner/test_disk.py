"""A full disk, a read-only one, a checkpoint that the disk has damaged: said in a sentence, and gone on from later."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ranking_items import prompts, samples
from tiny_run import make_config, write_prompts

from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import CannotFit, ExitCode
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.planner import disk
from lowrank_rlhf.planner.compute_cost import Amounts
from lowrank_rlhf.preferences.store import AnnotationStore
from lowrank_rlhf.run.checkpoints import latest_checkpoint
from lowrank_rlhf.run.directory import RunDir
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.step_log import StepLog
from lowrank_rlhf.sources.model_shape import Shape
from lowrank_rlhf.stages import of_rounds

ADAPTERS = ("adapters/sft", "adapters/reward", "adapters/policy", "adapters/policy-last", "adapters/critic")
MIB = 2**20
SHAPE = Shape("qwen3", 28, hidden=1024, mlp=3072, query=2048, key_value=1024, vocabulary=1000, tied=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 48 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no `mount` here to make a small disk with")
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def make_read_only(folder: Path) -> None:
    """By a read-only mount of the folder over itself: what is open stays so, and root is held too."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)


def make_writable(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Take every byte that is left."""
    with (folder / "filler").open("wb", buffering=0) as file:
        for size in (MIB, 4096):
            try:
                while file.write(b"0" * size):
                    pass
            except OSError:
                pass


@pytest.fixture(scope="module")
def config(tiny_folder, tmp_path_factory) -> Config:
    """Checkpoints at every step; people are not needed."""
    data = write_prompts(tmp_path_factory.mktemp("disk") / "prompts.jsonl")
    often = {"sft__save_every": 1, "reward__save_every": 1, "ppo__save_every": 1, "ppo__steps": 3}
    judged = {"rank__judge": "plain-language", "reward__fit_head_first": True}
    return make_config(tiny_folder(), data, **often, **judged)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> RunDir:
    return go(config, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, Callable[[], None]], None]:
    """`at("ppo", 2, act)`: act once, just before that step is logged."""
    append = StepLog.append

    def plan(stage: str, step: int, act: Callable[[], None]) -> None:
        left = [act]

        def act_and_append(log: StepLog, *place: object, **figures: object) -> None:
            if left and place == (stage, step):
                left.pop()()
            append(log, *place, **figures)

        monkeypatch.setattr(StepLog, "append", act_and_append)

    return plan


def go(config: Config, runs: Path) -> RunDir:
    return pipeline.run(config, runs, progress=Progress.silent())


@pytest.mark.parametrize(("steps", "kept"), [(50, 3), (10, 0)])
def test_the_policies_of_earlier_steps_need_space_too(tmp_path: Path, steps: int, kept: int) -> None:
    settings = make_config(tmp_path, tmp_path / "prompts.jsonl", ppo__steps=steps, ppo__evaluate_every=10, rounds=2)
    counts = Amounts(
        8, 2, 2, 8, answers=32, prompt_tokens=9, longest_prompt=9, answer_tokens=9, longest_demonstration=9
    )
    one, last = (disk.output_size(f"adapters/{name}", settings, SHAPE, counts) for name in ("policy", "policy-last"))
    assert last == (1 + kept) * one
    by_round = [stage for stage in of_rounds(2) if stage.kind == "ppo"]
    needs = [disk.smallest_need([stage], settings, SHAPE) for stage in by_round]
    critic = disk.output_size("adapters/critic", settings, SHAPE, counts)
    assert needs == [disk.SMALL_FILES + one + last + critic + disk.working_size(by_round[0], settings, SHAPE)] * 2


@pytest.mark.parametrize(("stage", "step"), [("sft", 3), ("ppo", 2)])
def test_a_disk_that_fills_up_stops_the_run_and_with_room_it_goes_on(
    config, whole, small_disk, at, stage, step
) -> None:
    at(stage, step, lambda: fill(small_disk))
    with pytest.raises(CannotFit, match=r"No space left on device\. .* free space on that disk and rerun"):
        go(config, small_disk)
    work = small_disk / "tiny" / "work" / stage
    last = latest_checkpoint(work)
    assert last
    assert last[0] == step - 1
    with pytest.raises(CannotFit, match="0 MiB free"):  # the same again is refused before it does anything
        go(config, small_disk)
    (small_disk / "filler").unlink()
    assert go(config, small_disk).hashes(ADAPTERS) == whole.hashes(ADAPTERS)


def test_a_disk_that_becomes_read_only_stops_the_run_and_writable_again_it_goes_on(
    config, whole, small_disk, at
) -> None:
    run = small_disk / "tiny"
    at("ppo", 2, lambda: make_read_only(run))
    with pytest.raises(CannotFit, match=r"Read-only file system\. .* give this user write permission and rerun"):
        go(config, small_disk)
    with pytest.raises(CannotFit, match="folder is not writable"):
        go(config, small_disk)
    make_writable(run)
    assert go(config, small_disk).hashes(ADAPTERS) == whole.hashes(ADAPTERS)


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_the_command_says_so_with_its_exit_code_and_no_traceback(config, small_disk, how) -> None:
    path = small_disk.parent / "c.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    if how == "full":
        fill(small_disk)
    else:
        make_read_only(small_disk)
    command = [sys.executable, "-m", "lowrank_rlhf", "run", str(path), "--runs", str(small_disk / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if how == "read-only":
        make_writable(small_disk)
    assert done.returncode == ExitCode.CANNOT_FIT
    assert {"full": "0 MiB free", "read-only": "not writable"}[how] in done.stderr
    assert "Traceback" not in done.stderr


def test_disk_space_is_that_of_the_run_folders_own_file_system(small_disk) -> None:
    below = disk.disk_space(small_disk / "runs" / "not" / "yet")
    assert 0 < below.free <= 48 * MIB < disk.disk_space(small_disk.parent).free
    link = small_disk.parent / "link"
    link.symlink_to(small_disk)
    assert disk.disk_space(link / "run").free <= 48 * MIB


def test_what_the_disk_is_not_to_blame_for_is_not_called_a_disk(tmp_path) -> None:
    with pytest.raises(FileNotFoundError), disk.disk_watched(tmp_path):
        (tmp_path / "none").read_text()


def test_rankings_on_a_full_disk_are_refused_and_those_before_are_there(small_disk) -> None:
    store = AnnotationStore(small_disk / "annotations.sqlite")
    fill(small_disk)
    with pytest.raises(CannotFit, match=r"annotations\.sqlite: .*disk.*Free disk space"):
        store.add_items(prompts(400), samples(400))
    os.unlink(small_disk / "filler")
    store.add_items(prompts(400), samples(400))
    assert store.counts("ann").prompts


@pytest.mark.parametrize("stage", ["sft", "ppo"])
@pytest.mark.filterwarnings("error")
def test_a_damaged_checkpoint_costs_one_step_and_no_bit(config, whole, at, tmp_path, stage) -> None:
    def die() -> None:
        raise KeyboardInterrupt

    at(stage, 3, die)
    with pytest.raises(KeyboardInterrupt):
        go(config, tmp_path)
    work = tmp_path / "tiny" / "work" / stage
    newest = work / "step-000002"
    assert {path.name for path in work.glob("step-*")} == {"step-000001", "step-000002"}
    weights = max(newest.rglob("adapter_model.safetensors"))
    size = weights.stat().st_size
    os.truncate(weights, size - 1)
    named = f"{weights.relative_to(newest)} is {size - 1} bytes instead of {size}"
    with pytest.warns(UserWarning, match=named):
        run_dir = go(config, tmp_path)
    assert run_dir.hashes(ADAPTERS) == whole.hashes(ADAPTERS)
