"""Choice of the compute dtype. Importing this module imports no torch."""

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_rlhf.config.model import Precision
from lowrank_rlhf.errors import UserError

if TYPE_CHECKING:
    import torch

BFLOAT16_UNITS = {"amx_bf16", "avx512_bf16"}
"""Flags of CPUs with bfloat16 matrix products in hardware."""

_BENCHMARK = """
import time, torch
def seconds(dtype):
    left, right = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    found = []
    for _ in range(4):
        start = time.perf_counter()
        left @ right
        found.append(time.perf_counter() - start)
    return min(found[1:])
print(seconds(torch.float32) / seconds(torch.bfloat16))
"""


class NoBfloat16(UserError):
    """bfloat16 was requested, and this CPU crashes on it."""


def choose_dtype(requested: Precision, device: "torch.device") -> "torch.dtype":
    """Return the requested format; for `auto`, bfloat16 if the hardware multiplies it faster, else float32.

    On an Apple GPU `auto` is float32: what bfloat16 gains there was not measured.

    Raises `NoBfloat16` if bfloat16 is requested and crashes on this CPU, `UserError` for float16 on a CPU.
    """
    import torch

    if requested == "float32":
        return torch.float32
    if requested == "float16":
        refuse_float16_without_gpu(requested, gpu=device.type != "cpu")
        return torch.float16
    if device.type == "cuda":
        fast = requested == "bfloat16" or torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    if device.type == "mps":
        return torch.bfloat16 if requested == "bfloat16" else torch.float32
    speedup = bfloat16_speedup() if cpu_flags() & BFLOAT16_UNITS else None
    if requested == "auto":
        return torch.bfloat16 if speedup is not None and speedup > 1 else torch.float32
    if speedup == 0:
        raise NoBfloat16(
            "model.compute_dtype: this machine's CPU reports bfloat16 but crashes on it (as some virtual machines do). "
            "Set auto or float32"
        )
    return torch.bfloat16


def sum_dtype(device: "torch.device") -> "torch.dtype":
    """Return the format for sums over many batches: float64, which an Apple GPU lacks; there float32."""
    import torch

    return torch.float32 if device.type == "mps" else torch.float64


def refuse_float16_without_gpu(requested: Precision, gpu: bool) -> None:
    """Raise `UserError` for float16 on a CPU, where it is the slowest format and has the smallest range."""
    if requested == "float16" and not gpu:
        raise UserError(
            "model.compute_dtype: float16 is for GPUs without bfloat16 (such as a T4), but this run uses a CPU. "
            "Set auto, bfloat16 or float32"
        )


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the CPU flags that Linux reports; empty on other systems."""
    if not cpuinfo.exists():
        return frozenset()
    lines = cpuinfo.read_text().splitlines()
    return frozenset(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())


@cache
def bfloat16_speedup() -> float:
    """Measure the speed of bfloat16 products on this CPU relative to float32, once per process; 0 if they crash.

    Runs in a subprocess: some virtual machines report AMX but hide its tile table (CPUID leaf 29), and oneDNN 3.12
    crashes there with an illegal instruction.
    """
    benchmark = subprocess.run([sys.executable, "-c", _BENCHMARK], capture_output=True, text=True, check=False)
    return float(benchmark.stdout) if benchmark.returncode == 0 else 0.0
