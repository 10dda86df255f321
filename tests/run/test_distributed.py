"""Two real processes on the tiny model: what one process makes, within rounding; stopped, killed, refused and told."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from launched import LIMIT, Launched
from tiny_run import make_config, write_prompts

from lowrank_rlhf import cli
from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.config.schema import Config
from lowrank_rlhf.errors import StaleRun, UserError
from lowrank_rlhf.pipeline import pipeline
from lowrank_rlhf.pipeline.preflight import problems
from lowrank_rlhf.run import distributed, launcher
from lowrank_rlhf.run.progress import Progress
from lowrank_rlhf.run.step_log import StepLog

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and SIGTERM")
ADAPTERS = ("sft", "reward", "policy", "policy-last", "critic")
SHARED = ("sft", "sample", "rank", "reward", "ppo")
# Two minibatches of two rows, several epochs, a moving KL weight, shared lower layers: all that they must agree on.
# SFT's last step has a single row: one process has none.
SETTINGS = {
    "stages": SHARED,
    "lora__last_layers": 1,
    "sft__epochs": 1,
    "sft__examples": 9,
    "reward__fit_head_first": True,
    "ppo__epochs": 2,
    "ppo__minibatches": 2,
    "ppo__kl_controller": "adaptive",
    "ppo__kl_horizon": 8,
    "rank__judge": "plain-language",
}


def rows(run: Path, stage: str) -> list[dict[str, Any]]:
    return list(StepLog(run / "metrics.jsonl").read(stage))


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory) -> SimpleNamespace:
    """A run in two processes: stopped in sft by a signal to one, killed in ppo, refused to one process, ended."""
    folder = tmp_path_factory.mktemp("two")
    config = make_config(tiny_folder(), write_prompts(folder / "prompts.jsonl"), **SETTINGS)
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    path = folder / "runs" / config.name

    def launch() -> Launched:
        return Launched(
            folder, "-m", "lowrank_rlhf", "run", str(folder / "config.yaml"), "--runs", str(folder / "runs")
        )

    def until(stage: str, number: int) -> tuple[list[int], str]:
        launched = launch()
        launched.wait_for(lambda: bool(rows(path, stage)))
        launched.all[1].send_signal(number)
        return launched.wait(), launched.said

    stopped, killed = until("sft", signal.SIGTERM), until("ppo", signal.SIGKILL)
    with pytest.raises(StaleRun) as refused:
        pipeline.run(config, folder / "runs", progress=Progress.silent())
    left = sorted((folder / "tmp").iterdir())
    last = launch()
    return SimpleNamespace(
        config=config,
        path=path,
        folder=folder,
        stopped=stopped,
        killed=killed,
        refused=str(refused.value),
        ended=(last.wait(), last.said),
        left=left,
    )


@pytest.fixture(scope="module")
def single(run: SimpleNamespace) -> Path:
    """The same in one process."""
    return pipeline.run(run.config, run.folder / "single", progress=Progress.silent()).path


def test_a_stop_in_one_process_stops_both_where_it_is_saved(run) -> None:
    codes, said = run.stopped
    assert codes == [130, 130], said
    assert said.count("sft is saved at step") == 1
    assert "Traceback" not in said


def test_one_killed_ends_the_other_with_a_sentence(run) -> None:
    codes, said = run.killed
    assert codes == [1, -signal.SIGKILL], said
    assert said.count("process 1 of this run, on ") == said.count(", was killed or crashed") == 1
    assert said.count("the main process works on it alone") == 1  # rank
    assert "Traceback" not in said


def test_a_half_done_stage_goes_on_in_as_many_processes_only(run) -> None:
    assert "Stage ppo was started in 2 processes" in run.refused
    assert "--redo ppo" in run.refused
    codes, said = run.ended
    assert codes == [0, 0], said
    assert said.count("resumes after") == 1
    assert said.count("2 processes share the work of this run") == 1
    done = {stage: json.loads((run.path / "done" / f"{stage}.json").read_text()) for stage in SHARED}
    assert {stage: mark["processes"] for stage, mark in done.items()} == {**dict.fromkeys(SHARED, 2), "rank": 1}


def test_adapters_are_those_of_one_process(run, single) -> None:
    """Adam divides by each gradient's size, so that rounding shows most where a gradient is all but 0."""
    from lowrank_rlhf.models.storage import WEIGHTS, read_tensors

    for name in ADAPTERS:
        ours, theirs = (read_tensors(path / "adapters" / name / WEIGHTS) for path in (run.path, single))
        assert ours.keys() == theirs.keys()
        apart = sum(float((ours[key] - theirs[key]).square().sum()) for key in ours) ** 0.5
        size = sum(float(tensor.square().sum()) for tensor in theirs.values()) ** 0.5
        assert apart < 1e-5 * size, name


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_metrics_are_those_of_one_process_and_written_once(run, single, stage) -> None:
    ours, theirs = rows(run.path, stage), rows(single, stage)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"stage", "tokens_per_second"}:
            if not name.startswith("time/"):
                assert one[name] == pytest.approx(other[name], rel=2e-5, abs=2e-5), (one["step"], name)


def test_the_main_process_alone_wrote(run, single) -> None:
    for name in ("samples.jsonl", "rankings.jsonl"):
        assert (run.path / name).read_bytes() == (single / name).read_bytes()
    files = [
        sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()) for path in (run.path, single)
    ]
    assert files[0] == files[1]
    assert len(run.left) == 1  # of the process that was killed
    assert sorted((run.folder / "tmp").iterdir()) == run.left


SCRIPT = """
import torch
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.batch_limits import BatchLimits
from lowrank_rlhf.run import distributed

with distributed.join() as group:
    main = group.is_main
    mine = group.shard(range(5))
    parts = [torch.tensor([1.0, 2.0]) * len(mine), torch.tensor(len(mine), dtype=torch.int64)]
    parts.append(torch.tensor([[float(main)]], dtype=torch.bfloat16))
    group.all_reduce(parts)
    print(f"shard {mine} sums {[part.tolist() for part in parts]} {group.sum(2 + main)}", flush=True)
    with group.single_process():
        assert group.shard("ab") == ["a", "b"] and group.sum(7) == 7 and group.is_main == main
    limits, tried = BatchLimits(tokens=64, group=group), []

    def attempt():
        tried.append(limits.tokens)
        if not main and len(tried) == 1:
            raise MemoryError("none left")
        group.all_reduce([torch.zeros(1)])

    limits.retry(attempt, 8)
    print(f"tried {tried}", flush=True)
    group.barrier()
    if not main:
        raise UserError("broken here")
    try:
        group.barrier()
    except distributed.ProcessLost as error:
        print(f"lost: {error}", flush=True)
"""


def test_two_processes_shard_reduce_halve_and_report_errors(tmp_path) -> None:
    launched = Launched(tmp_path, "-c", SCRIPT)
    assert launched.wait() == [0, 1], launched.said
    lines = set(launched.said.splitlines())
    assert "shard [0, 2, 4] sums [[5.0, 10.0], 5, [[1.0]]] 5" in lines
    assert "shard [1, 3] sums [[5.0, 10.0], 5, [[1.0]]] 5" in lines
    assert launched.said.count("tried [64, 32]\n") == 2
    assert "lost: process 1: broken here" in lines


SILENT = """
import os, signal, sys, time
from lowrank_rlhf.run import distributed, heartbeat

heartbeat.SECONDS, heartbeat.POLL, heartbeat.MISSED_BEATS, heartbeat.STORE_POLLS = 0.1, 0.1, 10, 20
with distributed.join() as group:
    group.barrier()
    if group.rank == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGSTOP)
    if group.rank == int(sys.argv[2]):
        time.sleep(3)  # three times as long as the limit: it is busy, not lost
    for _ in range(2):
        group.barrier()
    print("met", flush=True)
"""


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_process_is_named_and_ends_the_run(tmp_path, frozen) -> None:
    """Also the one that holds the store: its beats cannot be read then."""
    since = time.monotonic()
    launched = Launched(tmp_path, "-c", SILENT, str(frozen), "-1")
    codes = launched.wait()
    assert codes[frozen] == -signal.SIGKILL, launched.said
    assert codes[1 - frozen] == 1, launched.said
    assert f"process {frozen} of this run no longer answers" in launched.said
    assert time.monotonic() - since < LIMIT


def test_a_busy_process_is_waited_for(tmp_path) -> None:
    launched = Launched(tmp_path, "-c", SILENT, "-1", "1")
    assert launched.wait() == [0, 0], launched.said
    assert launched.said.count("met") == 2


SAMPLING = """
import sys
from dataclasses import replace
from pathlib import Path

sys.path.append(sys.argv[2])
from tiny import load_tiny, make_roles, random_tokens

from lowrank_rlhf.config.schema import SampleConfig
from lowrank_rlhf.errors import CannotFit
from lowrank_rlhf.models.generation import sample_answers
from lowrank_rlhf.models.roles import Role
from lowrank_rlhf.run import distributed

with distributed.join() as group:
    roles = make_roles(replace(load_tiny(Path(sys.argv[1])), group=group))
    limits, most, halved = roles.base.limits, 0, []

    def no_memory(_, args, kwargs):
        if len(kwargs["input_ids"]) > most:
            raise MemoryError

    def hear(why):
        halved.append(limits.rows)
        assert len(halved) < 9, "for ever"

    roles.decoder.register_forward_pre_hook(no_memory, with_kwargs=True)
    limits.on_halved = hear
    sampling = SampleConfig(max_new_tokens=3, batch_size=8)
    for most in (2, 1):
        limits.rows = None
        halved.clear()
        try:
            answers = sample_answers(roles, Role.POLICY, random_tokens(1, [4] * 10), sampling, 0, answers_per_prompt=2)
            print(f"{most} rows at most: {halved}, answers to {len(answers)} prompts", flush=True)
        except CannotFit as error:
            print(f"{most} rows at most: {halved}, {error}", flush=True)
"""


def test_sampling_halves_what_each_process_takes_until_a_single_prompt_is_too_much(tiny_folder, tmp_path) -> None:
    """Of 10 prompts with two answers to each they take four each at first."""
    launched = Launched(tmp_path, "-c", SAMPLING, str(tiny_folder()), str(Path(__file__).parents[1] / "support"))
    assert launched.wait() == [0, 0], launched.said
    assert launched.said.count("2 rows at most: [4, 2], answers to 10 prompts\n") == 2, launched.said
    assert launched.said.count("1 rows at most: [4, 2], out of memory with a single prompt's answers") == 2


def test_a_mistake_is_told_once(tmp_path) -> None:
    launched = Launched(tmp_path, "-m", "lowrank_rlhf", "run", "quickstart", "ppo.stepz=3")
    assert launched.wait() == [2, 2]
    assert launched.said.count("unknown key") == 1


@pytest.fixture
def as_one_of_three(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize("command", ["status", "validate", "dashboard", "sweep", "export"])
def test_only_run_can_be_launched(as_one_of_three, capsys, command) -> None:
    as_one_of_three.setattr(sys, "argv", ["lowrank_rlhf", command, "x", "y"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert f"{command}: launched in 3 processes" in capsys.readouterr().err


def test_what_the_launcher_says_must_make_sense(as_one_of_three) -> None:
    for here in (3, 1):
        as_one_of_three.setenv("LOCAL_WORLD_SIZE", str(here))
        assert launcher.launched_processes() == 3
        assert launcher.on_several_machines(launcher.environment()) == (here == 1)
    as_one_of_three.setenv("WORLD_SIZE", "many")
    with pytest.raises(UserError, match="WORLD_SIZE: expected a number"):
        launcher.launched_processes()


def test_what_is_hidden_from_libraries_is_not_hidden_from_a_run(as_one_of_three) -> None:
    """As by `accelerate launch`, which would be refused if this process seemed to be alone."""
    as_one_of_three.setenv("LOCAL_WORLD_SIZE", "3")
    as_one_of_three.setenv("ACCELERATE_MIXED_PRECISION", "no")
    as_one_of_three.setenv("MASTER_ADDR", "10.0.0.1")
    before = launcher.environment()
    with launcher.hide():
        assert not set(launcher.NAMES) & set(os.environ)
        assert launcher.environment() == before
        assert (launcher.launched_processes(), launcher.processes_here()) == (3, 3)
    assert set(launcher.NAMES) <= set(os.environ)


COPIES = {
    "accelerate launch --num_machines 2, without GPUs": (
        {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "10.0.0.1"}, "accelerate launch was asked for several"
    ),
    "mpirun -n 2": ({"OMPI_COMM_WORLD_SIZE": "2"}, "MPI started 2 processes (OMPI_COMM_WORLD_SIZE)"),
    "no rank": ({"WORLD_SIZE": "2"}, "only one of RANK and WORLD_SIZE"),
    "a rank alone": ({"RANK": "1"}, "only one of RANK and WORLD_SIZE"),
}  # fmt: skip
ALONE = ({}, {"WORLD_SIZE": "1"}, {"ACCELERATE_MIXED_PRECISION": "no"}, {"MASTER_ADDR": "a"}, {"PMI_SIZE": "1"})


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*launcher.NAMES, *launcher._MPI, launcher._ACCELERATE, "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("name", COPIES)
def test_a_launch_of_several_whole_runs_is_refused(bare, name) -> None:
    """Each would do all the work, and pay the judge."""
    given, message = COPIES[name]
    for key, value in given.items():
        bare.setenv(key, value)
    with pytest.raises(UserError, match=re.escape(message)):
        launcher.launched_processes()


@pytest.mark.parametrize("given", ALONE)
def test_a_launch_of_one_process_is_none_of_several(bare, given) -> None:
    for key, value in given.items():
        bare.setenv(key, value)
    assert launcher.launched_processes() == 1
    assert launcher.is_launched() == any(key in given for key in ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"))


@pytest.mark.parametrize(("rank", "local", "printed"), [("0", "0", "oe"), ("1", "1", ""), ("2", "0", "e")])
def test_the_first_process_of_another_machine_prints_its_errors_there(
    as_one_of_three, capsys, rank, local, printed
) -> None:
    as_one_of_three.setenv("RANK", rank)
    as_one_of_three.setenv("LOCAL_RANK", local)
    with launcher.silence_other_processes():
        print("o", end="")
        print("e", end="", file=sys.stderr)
    assert "".join(capsys.readouterr()) == printed


def test_an_unclear_launch_is_a_sentence(as_one_of_three, capsys) -> None:
    as_one_of_three.setenv("WORLD_SIZE", "many")
    as_one_of_three.setattr(sys, "argv", ["lowrank_rlhf", "status", "x"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == "WORLD_SIZE: expected a number in the environment, got 'many'\n"


def test_a_batch_of_sft_must_be_dealt_out_evenly(as_one_of_three, tiny_folder) -> None:
    config: Config = make_config(tiny_folder(), sft__batch_size=4)
    assert (("sft", "batch_size"), "4 rows cannot be divided evenly among 3 processes. Set a multiple") in problems(
        config
    )
    as_one_of_three.setenv("WORLD_SIZE", "2")
    assert problems(config) == []


def test_in_one_process_nothing_is_shared_or_begun() -> None:
    code = (
        "import sys, torch; from lowrank_rlhf.run import distributed\n"
        "with distributed.join() as group:\n"
        "    assert group.shard('abc') == ['a', 'b', 'c']\n"
        "    assert group.world_size == 1 and group.is_main\n"
        "    group.all_reduce([torch.ones(1)]); assert group.sum(4) == 4 and group.can_stop\n"
        "assert not torch.distributed.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("visible", "place", "own"),
    [(None, None, "0"), ("3,1", None, "3"), ("3,1", "1", "1"), ("3", "1", ""), ("", None, "")],
)
def test_a_process_sees_one_gpu(monkeypatch: pytest.MonkeyPatch, visible, place, own) -> None:
    """Also where it is the only one: transformers' trainer would take all that it sees."""
    for name, value in {"CUDA_VISIBLE_DEVICES": visible, "RANK": place and "0", "LOCAL_RANK": place}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with distributed.join():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == own
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible
