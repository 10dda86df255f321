"""The number format is chosen by what the machine can do, and finding out never costs the process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import bfloat16_works
from tiny_run import make_config, make_session

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models import allocator, precision
from lowrank_rlhf.models.precision import bfloat16_speedup, choose_dtype, cpu_flags
from lowrank_rlhf.planner import machine
from lowrank_rlhf.run.progress import Progress

CPU = torch.device("cpu")


def test_what_is_asked_for_is_taken() -> None:
    assert choose_dtype("float32", CPU) is torch.float32
    assert choose_dtype("bfloat16", torch.device("cuda")) is torch.bfloat16


@pytest.mark.parametrize("flags", [{"avx2"}, {"avx512_bf16"}])
def test_bfloat16_by_name_is_taken_however_slow(monkeypatch: pytest.MonkeyPatch, flags: set[str]) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: flags)
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda: 0.1)
    assert choose_dtype("bfloat16", CPU) is torch.bfloat16


def test_bfloat16_by_name_on_a_cpu_that_dies_of_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: {"amx_bf16"})
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda: 0.0)
    with pytest.raises(UserError, match=r"model\.compute_dtype: .*Set auto or float32"):
        choose_dtype("bfloat16", CPU)


@pytest.mark.parametrize(
    ("flags", "speedup", "expected"),
    [
        ({"avx2"}, 9.0, torch.float32),  # without units for it, it is not even tried
        ({"avx512_bf16"}, 2.0, torch.bfloat16),
        ({"amx_bf16"}, 9.0, torch.bfloat16),
        ({"amx_bf16"}, 0.5, torch.float32),
        ({"amx_bf16"}, 0.0, torch.float32),
    ],
)
def test_auto_on_a_cpu(monkeypatch: pytest.MonkeyPatch, flags: set[str], speedup: float, expected: torch.dtype) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: flags)
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda: speedup)
    assert choose_dtype("auto", CPU) is expected


def test_what_auto_chose_stays_with_the_run(tiny_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each session is as a process of its own: bfloat16 loses the first race, wins the next ones, and is not taken."""
    config = make_config(tiny_folder(), model__compute_dtype="auto")
    monkeypatch.setattr(precision, "cpu_flags", lambda: {"avx512_bf16"})
    for speedup in (0.5, 9.0, 0.0):
        monkeypatch.setattr(precision, "bfloat16_speedup", lambda speedup=speedup: speedup)
        assert make_session(config, tmp_path).load_roles().base.compute_dtype is torch.float32
    kept = tmp_path / "tiny" / "precision.json"
    assert json.loads(kept.read_text()) == {"schema": 1, "compute_dtype": "float32", "threads": 1}
    for nothing in ("{}", '{"compute_dtype": "float16"}'):
        kept.write_text(nothing)
        assert make_session(config, tmp_path).load_roles().base.compute_dtype is torch.float32
        assert json.loads(kept.read_text())["compute_dtype"] == "float32"
    kept.write_text("cut sho")
    with pytest.raises(UserError, match="not a JSON object"):
        make_session(config, tmp_path).load_roles()


def test_a_run_in_bfloat16_stays_so_and_is_refused_where_that_cannot_be(
    tiny_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = bfloat16_works()  # before it is told lies below
    config = make_config(tiny_folder(), model__compute_dtype="auto")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "precision.json").write_text('{"schema": 1, "compute_dtype": "bfloat16"}')
    monkeypatch.setattr(precision, "cpu_flags", lambda: {"amx_bf16"})
    monkeypatch.setattr(precision, "bfloat16_speedup", lambda: 0.0)
    with pytest.raises(UserError, match=r"auto chose bfloat16 when this run started .*precision\.json.*name=\.\.\."):
        _ = make_session(config, tmp_path).load_roles().base
    named = make_config(tiny_folder(), model__compute_dtype="float32")
    assert (
        make_session(named, tmp_path).load_roles().base.compute_dtype is torch.float32
    )  # what is asked for by name is taken
    if works:
        monkeypatch.setattr(precision, "bfloat16_speedup", lambda: 0.5)
        assert make_session(config, tmp_path).load_roles().base.compute_dtype is torch.bfloat16


def test_a_run_that_goes_on_with_other_threads_says_so(tiny_folder, tmp_path: Path, capsys) -> None:
    """They add in another order, so that the last bits differ (model.threads itself cannot change: it is a setting)."""
    config = make_config(tiny_folder(), model__threads=0)
    kept, before = tmp_path / "tiny" / "precision.json", torch.get_num_threads()
    try:
        for threads, said in ((2, ""), (2, ""), (1, "started with 2 CPU threads"), (1, "started with 2 CPU threads")):
            torch.set_num_threads(threads)
            session = make_session(config, tmp_path)
            session.progress = Progress()
            assert session.load_roles().base.compute_dtype is torch.float32
            out = capsys.readouterr().out
            assert ("NOTE" in out, said in out) == (bool(said), True)
            assert ("OMP_NUM_THREADS=2" in out) == bool(said)
            assert json.loads(kept.read_text())["threads"] == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("offered", [True, False])
def test_auto_on_cuda(monkeypatch: pytest.MonkeyPatch, offered: bool) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: offered and not including_emulation
    )
    assert choose_dtype("auto", torch.device("cuda")) is (torch.bfloat16 if offered else torch.float32)


def test_an_illegal_instruction_in_the_race_is_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_BENCHMARK", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert bfloat16_speedup.__wrapped__() == 0


def test_the_race_itself_gives_a_ratio() -> None:
    """0 only where bfloat16 dies, and that has been seen with AMX only."""
    assert bfloat16_speedup() > 0 or "amx_bf16" in cpu_flags()


def test_cpu_flags(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\nbugs\t: none\n")
    assert cpu_flags(tmp_path / "cpuinfo") == {"fpu", "avx2", "amx_bf16"}
    assert cpu_flags(tmp_path / "none") == set()


@pytest.mark.skipif(allocator._glibc("mallopt") is None, reason="not glibc")
def test_freed_memory_is_reused_instead_of_mapped_afresh() -> None:
    """Page faults of forty 64 MB tensors, one after another: those of all by default, of a few when kept."""
    script = """
import resource, torch
from lowrank_rlhf.models.allocator import keep_freed_memory
KEEP
torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def faults(keep: str) -> int:
        command = [sys.executable, "-c", script.replace("KEEP", keep)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("keep_freed_memory()") < faults("") / 4


@pytest.mark.skipif(allocator._glibc("mallopt") is None, reason="not glibc")
def test_large_blocks_are_returned_to_the_system_when_they_are_freed() -> None:
    """50 MiB of blocks between one that was larger and one that stays."""
    script = """
import psutil
from lowrank_rlhf.models.allocator import return_large_blocks
RETURN
b"x" * (1 << 24)
size = 1 << 18
blocks = [b"x" * size for _ in range(200)]
stays = b"x" * (size // 2)
full = psutil.Process().memory_info().rss
del blocks
print(full - psutil.Process().memory_info().rss)
"""

    def returned(before: str) -> int:
        command = [sys.executable, "-c", script.replace("RETURN", before)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) >> 20

    assert returned("") < 10
    assert returned("return_large_blocks()") > 40


@pytest.mark.skipif(allocator._glibc("malloc_trim") is None, reason="not glibc")
def test_kept_memory_can_be_released() -> None:
    script = """
import psutil, torch
from lowrank_rlhf.models.allocator import keep_freed_memory, release_freed_memory
keep_freed_memory()
tensors = [torch.ones(1 << 22) for _ in range(20)]
last = torch.ones(1)
del tensors
kept = psutil.Process().memory_info().rss
release_freed_memory()
print(kept - psutil.Process().memory_info().rss)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 15 * (1 << 24)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="oneDNN as PyTorch has it on Linux")
def test_few_kernels_are_kept() -> None:
    """Memory that bfloat16 products of 200 shapes leave behind; the environment has the last word."""
    script = """
import psutil, torch
from lowrank_rlhf.models.allocator import keep_few_kernels, release_freed_memory
KEEP
weight, rows = torch.ones(1024, 576, dtype=torch.bfloat16), torch.ones(500, 576, dtype=torch.bfloat16)
torch.nn.functional.linear(rows, weight)
before = psutil.Process().memory_info().rss
for count in range(200, 400):
    torch.nn.functional.linear(rows[:count], weight)
release_freed_memory()
print(psutil.Process().memory_info().rss - before)
"""

    def left(keep: str, **environment: str) -> int:
        command = [sys.executable, "-c", script.replace("KEEP", keep)]
        clean = {name: value for name, value in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
        return int(subprocess.run(command, capture_output=True, text=True, check=True, env=clean | environment).stdout)

    everything = left("")
    if everything < 40 << 20:
        pytest.skip("this CPU multiplies bfloat16 without making kernels")
    assert left("keep_few_kernels()") < everything / 2
    asked = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024", "LRU_CACHE_CAPACITY": "1024"}
    assert left("keep_few_kernels()", **asked) > everything / 2


def test_garbage_from_before_a_release_is_collected_by_the_next_one() -> None:
    """And by no collection in between: what has survived a release is not looked at."""
    script = """
import gc, weakref
from lowrank_rlhf.models.allocator import release_freed_memory, release_if_short
class Node: pass
node = Node()
node.itself, dead = node, weakref.ref(node)
release_freed_memory()
del node
release_if_short()
print(dead() is not None, gc.get_freeze_count() > 10_000)
release_freed_memory()
print(dead() is None)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True"]


def test_inside_a_stage_memory_is_returned_only_where_less_is_free_than_used(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    monkeypatch.setattr(allocator, "_glibc", lambda _: trims.append)
    monkeypatch.setattr(allocator, "memory_in_use_bytes", lambda: 1000)
    for free, trimmed in ((1000, 0), (999, 1)):
        monkeypatch.setattr(allocator, "free_memory_bytes", lambda free=free: free)
        allocator.release_if_short()
        assert len(trims) == trimmed
    allocator.release_freed_memory()
    assert len(trims) == 2


def test_elsewhere_than_on_linux_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)
    allocator.keep_freed_memory()
    allocator.release_freed_memory()


def test_float16_is_taken_on_a_gpu_and_refused_on_a_cpu_by_run_and_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_dtype("float16", torch.device("cuda")) is torch.float16
    with pytest.raises(UserError, match=r"model\.compute_dtype: float16 is for GPUs .*Set auto, bfloat16 or float32"):
        choose_dtype("float16", CPU)
    config = ModelConfig(source="a/b", compute_dtype="float16")
    monkeypatch.setattr(machine, "_gpu_memory", lambda: [(14 * 2**30, 15 * 2**30)])
    found = machine.find_machine(config)
    assert (found.number_format, found.device.width, found.free) == ("float16", 2, 14 * 2**30)
    assert machine.find_machine(config.model_copy(update={"compute_dtype": "auto"})).number_format == "bfloat16"
    monkeypatch.setattr(machine, "_gpu_memory", list)
    with pytest.raises(UserError, match="float16 is for GPUs"):
        machine.find_machine(config)
