"""Two machines without a shared folder, as two network namespaces: only the main one has data and a run folder."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import make_config, write_prompts

from lowrank_rlhf.config.loading import dump_config
from lowrank_rlhf.data.run_data import RunData
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.pipeline import multi_process
from lowrank_rlhf.run.launcher import interface_towards

MAIN = "10.77.0.1"
PORT = "29511"
LIMIT = 240
"""Seconds after which a launch hangs."""


class Machines:
    """Two namespaces joined by a cable; each has its own home, temporary folder and working folder."""

    def __init__(self, folder: Path) -> None:
        self.names = [f"lr{os.getpid()}-{side}" for side in "ab"]
        self.folders = [folder / "a", folder / "b"]
        for own in self.folders:
            for name in ("home", "tmp"):
                (own / name).mkdir(parents=True)
        first, second = self.names
        try:
            for name in self.names:
                self.ip("netns", "add", name)
            self.ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
            for name, address in zip(self.names, (MAIN, "10.77.0.2"), strict=True):
                self.ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
                for device in ("lo", "cable"):
                    self.ip("-n", name, "link", "set", device, "up")
        except BaseException:
            self.close()
            raise

    def ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    def start(self, side: int, *command: str, **environment: str) -> "subprocess.Popen[str]":
        own = self.folders[side]
        given = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("GLOO", "LOWRANK_RLHF"))},
            "HOME": str(own / "home"),
            "TMPDIR": str(own / "tmp"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **environment,
        }
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[side], sys.executable, *command],
            cwd=own,
            env=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def close(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def ended(processes: list["subprocess.Popen[str]"]) -> list[tuple[int, str]]:
    """Exit code and output of each."""
    try:
        outputs = [process.communicate(timeout=LIMIT)[0] for process in processes]
        return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("network namespaces need Linux and root")
    try:
        made = Machines(tmp_path)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', error)}")
    yield made
    made.close()


LAUNCHERS = {
    "torchrun": [
        "torch.distributed.run",
        "--nnodes=2",
        f"--master_addr={MAIN}",
        f"--master_port={PORT}",
        "--node_rank",
    ],
    "accelerate": [
        *("accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "2"),
        *("--main_process_ip", MAIN, "--main_process_port", PORT, "--mixed_precision", "no", "--dynamo_backend", "no"),
        "--machine_rank",
    ],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_second_machine_needs_code_and_config_only(machines, tiny_folder, launcher) -> None:
    """The second stage reads what the main process made in the first one."""
    stages = ("sft", "sample")
    config = make_config(
        tiny_folder(), Path("prompts.jsonl"), stages=stages, sft__epochs=1, sft__examples=4, sample__prompts=2
    )
    write_prompts(machines.folders[0] / "prompts.jsonl")
    for folder in machines.folders:
        (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    start, run = ["-m", *LAUNCHERS[launcher]], ["-m", "lowrank_rlhf", "run", "config.yaml"]
    results = ended([machines.start(side, *start, str(side), *run) for side in (0, 1)])
    assert [code for code, _ in results] == [0, 0], results
    assert "2 processes share the work of this run" in results[0][1]
    done = machines.folders[0] / "runs" / config.name / "done"
    assert [json.loads((done / f"{stage}.json").read_text())["processes"] for stage in stages] == [2, 2]
    assert {path.name for path in machines.folders[1].iterdir()} == {"config.yaml", "home", "tmp"}
    assert not list((machines.folders[1] / "tmp").glob("lowrank_rlhf-*"))


def test_accelerate_without_gpus_starts_copies_which_refuse(machines, tiny_folder) -> None:
    config = make_config(tiny_folder(), Path("prompts.jsonl"))
    (machines.folders[0] / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    write_prompts(machines.folders[0] / "prompts.jsonl")
    start = ["-m", *(word for word in LAUNCHERS["accelerate"] if word != "--multi_gpu"), "0", "--cpu"]
    ((code, output),) = ended([machines.start(0, *start, "-m", "lowrank_rlhf", "run", "config.yaml")])
    assert code != 0
    assert "accelerate launch was asked for several processes or machines" in " ".join(output.split())
    assert not (machines.folders[0] / "runs").exists()


def test_a_machine_with_another_config_is_refused(tiny_folder) -> None:
    config = make_config(tiny_folder(), Path("prompts.jsonl"))
    multi_process._check_settings(config, config.model_dump_json().encode())
    other = make_config(tiny_folder(), Path("prompts.jsonl"), seed=2, ppo__steps=5)
    with pytest.raises(UserError, match=r"differs from that of the main process in seed, ppo\. Start"):
        multi_process._check_settings(config, other.model_dump_json().encode())


def test_data_is_received_as_it_was_read(tiny_folder, tmp_path) -> None:
    rows = [{"prompt": f"q {n}", "chosen": "a", "rejected": "b"} for n in range(12)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    config = make_config(tiny_folder(), path, rank__source="dataset", rank__dataset=str(path))
    read = RunData(config)
    assert read.comparisons
    received = RunData.received(config.model_copy(update={"data": None}), read.contents)
    assert replace(received.prompts, fields={}) == replace(read.prompts, fields={})
    assert received.comparisons == read.comparisons


WAITING = """
import time
from lowrank_rlhf import cli
from lowrank_rlhf.run import distributed, heartbeat

heartbeat.SECONDS, heartbeat.POLL, heartbeat.MISSED_BEATS, heartbeat.STORE_POLLS = 0.1, 0.1, 10, 20

def app():
    with distributed.join() as group:
        group.barrier()
        open("met", "w").close()
        while True:
            group.barrier()
            time.sleep(0.01)

cli.app = app
cli.main()
"""


@pytest.mark.parametrize("killed", [None, 0], ids=["cut off", "main killed"])
def test_a_machine_that_is_lost_ends_both_with_its_name(machines, killed) -> None:
    place = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": MAIN, "MASTER_PORT": PORT}
    processes = [machines.start(side, "-c", WAITING, RANK=str(side), **place) for side in (0, 1)]
    since = time.monotonic()
    while not all((folder / "met").exists() for folder in machines.folders):
        assert time.monotonic() - since < LIMIT
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.05)
    if killed is None:
        machines.ip("-n", machines.names[0], "link", "set", "cable", "down")
    else:
        processes[killed].send_signal(signal.SIGKILL)
    results = ended(processes)
    assert [code for code, _ in results] == [-signal.SIGKILL if side == killed else 1 for side in (0, 1)], results
    for side in {0, 1} - {killed}:
        assert f"process {1 - side} of this run, on " in results[side][1]
    assert not any("Traceback" in said or "frame #" in said for _, said in results), results


def test_an_address_of_this_machine_alone_is_refused() -> None:
    with pytest.raises(UserError, match="an address of this machine alone"):
        interface_towards("127.0.0.1")
    with pytest.raises(UserError, match=r"nowhere\.invalid, cannot be reached"):
        interface_towards("nowhere.invalid")
