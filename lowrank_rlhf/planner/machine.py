"""Free memory and speed of this machine, found within a second and without torch."""

import os
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from lowrank_rlhf.config.schema import ModelConfig
from lowrank_rlhf.errors import UserError
from lowrank_rlhf.models.precision import BFLOAT16_UNITS, cpu_flags, refuse_float16_without_gpu
from lowrank_rlhf.planner.memory import Device
from lowrank_rlhf.run.launcher import launched_processes, processes_here
from lowrank_rlhf.run.memory_usage import system_memory_bytes

BFLOAT16_GAIN = 1.5
"""Speedup of a whole forward pass in bfloat16 on a CPU with bfloat16 instructions."""
CUDA_OPERATIONS = 2e13
"""Assumed operations per second of a forward pass on a mid-range GPU; not measured."""


@dataclass(frozen=True)
class Machine:
    """Device of a run. Memory in bytes."""

    device: Device
    free: int
    total: int
    operations: float
    """Approximate floating-point operations per second of a forward pass."""
    number_format: str
    """Data type of matrix multiplications."""


def find_machine(config: ModelConfig) -> Machine:
    """Return the GPU if the config allows it and torch can use it, else the CPU.

    An Apple GPU counts as the CPU, whose memory it uses: its speed was not measured. Processes that a launcher started
    on one CPU share its free memory, and each counts its part.

    Raises `UserError` for float16 without a GPU, as a run does.
    """
    gpu = None if config.device in ("cpu", "mps") else next(iter(_gpu_memory()), None)
    refuse_float16_without_gpu(config.compute_dtype, gpu is not None or config.device == "mps")
    number_format: str = config.compute_dtype
    if number_format == "auto":
        units = config.device != "mps" and cpu_flags() & BFLOAT16_UNITS
        number_format = "bfloat16" if gpu or units else "float32"
    device = Device(gpu is not None, 4 if number_format == "float32" else 2, launched_processes())
    if gpu:
        return Machine(device, *gpu, CUDA_OPERATIONS, number_format)
    operations = _float32_operations() * (BFLOAT16_GAIN if device.width == 2 else 1)
    free, total = system_memory_bytes()
    return Machine(device, free // processes_here(), total, operations, number_format)


def card(gibibytes: float, config: ModelConfig) -> Machine:
    """Return a GPU that this machine need not have, with that much memory, all of it free.

    Raises `UserError` for a config that uses no GPU.
    """
    if config.device in ("cpu", "mps"):
        raise UserError(f"--gpu: model.device is {config.device}, so no such GPU is used. Set model.device=auto")
    number_format: str = "bfloat16" if config.compute_dtype == "auto" else config.compute_dtype
    size = round(gibibytes * 2**30)
    device = Device(True, 4 if number_format == "float32" else 2, launched_processes())
    return Machine(device, size, size, CUDA_OPERATIONS, number_format)


def same_machine(environment: dict[str, object]) -> bool:
    """Return True if a run's env.json was written on this machine, as far as it shows."""
    return environment.get("platform") == platform.platform()


def gpus() -> list[str]:
    """Return the GPUs that a run could use, as `CUDA_VISIBLE_DEVICES` names them."""
    found = [str(index) for index in range(len(_gpu_memory()))]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not found or chosen is None:
        return found
    return [name for part in chosen.split(",") if (name := part.strip()) and not name.startswith("-")]


def cores() -> int:
    """Return the number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu_memory() -> list[tuple[int, int]]:
    """Return free and total memory of each GPU; nothing with a PyTorch that cannot use them."""
    program = shutil.which("nvidia-smi")
    if program is None or _cpu_build():
        return []
    query = [program, "--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        rows = [[int(part) * 2**20 for part in line.split(",")] for line in done.stdout.splitlines()]
        return [(free, total) for free, total in rows]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def _cpu_build() -> bool:
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return True


def _float32_operations() -> float:
    """Measure operations per second of all cores, from the fastest of many small matrix products on one.

    The products are small, so that OpenBLAS uses one thread: the times of two would include waiting for busy cores.
    """
    import numpy

    left = right = numpy.ones((64, 64), numpy.float32)
    product = numpy.empty_like(left)
    best, until = float("inf"), time.perf_counter() + 0.05
    while time.perf_counter() < until:
        start = time.perf_counter()
        numpy.matmul(left, right, out=product)
        best = min(best, time.perf_counter() - start)
    return 2 * 64**3 / best * cores()
