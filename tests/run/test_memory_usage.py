"""Peak memory: of the process on a CPU, of the card where one is used."""

import mmap
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lowrank_rlhf.run import memory_usage
from lowrank_rlhf.run.memory_usage import (
    forget_peak_memory,
    free_memory_bytes,
    peak_memory_bytes,
    system_memory_bytes,
)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_the_peak_of_memory_can_begin_anew() -> None:
    size = peak_memory_bytes() + (64 << 20)
    with mmap.mmap(-1, size) as block:  # goes back to the system at once, whatever the allocator keeps
        for page in range(0, size, 4096):
            block[page] = 1
        high = peak_memory_bytes()
    assert peak_memory_bytes() == pytest.approx(high, abs=4 << 20)  # the kernel counts a little late
    if forget_peak_memory():  # some containers forbid it
        assert high - peak_memory_bytes() > 48 << 20
    else:
        assert peak_memory_bytes() == pytest.approx(high, abs=4 << 20)


def test_where_the_peak_cannot_begin_anew_it_is_the_process_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lowrank_rlhf.run.memory_usage._CLEAR_REFS", tmp_path / "none" / "clear_refs")
    assert not forget_peak_memory()
    by_status = peak_memory_bytes()
    monkeypatch.setattr("lowrank_rlhf.run.memory_usage._STATUS", tmp_path / "none")
    assert peak_memory_bytes() == pytest.approx(by_status, rel=0.5)  # getrusage's, which is never reset


def test_peak_memory_is_in_bytes_and_rises_with_what_is_used() -> None:
    before = peak_memory_bytes()
    block = bytearray(before + (64 << 20))  # more than has ever been in use
    for page in range(0, len(block), 4096):
        block[page] = 1
    assert peak_memory_bytes() - before > 48 << 20
    assert before > 10 << 20


@pytest.mark.parametrize("used", [True, False], ids=["a GPU in use", "a GPU that is not used"])
def test_on_a_gpu_it_is_what_pytorch_held_of_the_card(monkeypatch: pytest.MonkeyPatch, used: bool) -> None:
    held = [5 << 30]
    cuda = SimpleNamespace(
        is_initialized=lambda: used,
        max_memory_reserved=lambda: held[0],
        reset_peak_memory_stats=lambda: held.__setitem__(0, 3 << 30),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    before = peak_memory_bytes()
    assert (before == 5 << 30) == used
    forget_peak_memory()
    assert held == [3 << 30 if used else 5 << 30]
    assert (peak_memory_bytes() == 3 << 30) == used


def test_free_memory_is_that_of_the_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory_usage, "_CONTROL_GROUP", tmp_path)
    state = SimpleNamespace(available=5000, total=9000)
    monkeypatch.setattr(memory_usage.psutil, "virtual_memory", lambda: state)
    assert system_memory_bytes() == (5000, 9000)
    for limit, used, expected in (
        ("3000", 1000, (2000, 3000)), ("9999", 1000, (5000, 9000)), ("3000", 3100, (0, 3000)), ("max", 1, (5000, 9000))
    ):  # fmt: skip
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text(str(used))
        (tmp_path / "memory.stat").write_text("anon 700\nfile 300\ninactive_anon 0\nactive_file 50\n")
        assert system_memory_bytes() == expected


def test_pages_of_files_that_a_container_can_drop_are_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container that has read a model's file of 600 bytes: 1000 in use, of which 550 are dropped when needed."""
    monkeypatch.setattr(memory_usage, "_CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(memory_usage.psutil, "virtual_memory", lambda: SimpleNamespace(available=5000, total=9000))
    (tmp_path / "memory.max").write_text("1200\n")
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 400\nfile 600\nactive_file 50\ninactive_file 550\n")
    assert system_memory_bytes() == (750, 1200)
    (tmp_path / "memory.current").write_text("540\n")  # the two files are read one after the other
    assert system_memory_bytes() == (1200, 1200)


def test_free_memory_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the one asked for; of the one in use without a device, and of the system where no GPU is used."""
    free = {None: 11, "cuda:1": 22}
    cuda = SimpleNamespace(
        is_initialized=lambda: True, mem_get_info=lambda device: (free[device and f"cuda:{device.index}"], 99)
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(memory_usage, "system_memory_bytes", lambda: (33, 99))
    found = [free_memory_bytes(SimpleNamespace(type=kind, index=1)) for kind in ("cuda", "cpu")]
    assert [free_memory_bytes(), *found] == [11, 22, 33]
    monkeypatch.setattr(cuda, "is_initialized", lambda: False)
    assert free_memory_bytes() == 33
