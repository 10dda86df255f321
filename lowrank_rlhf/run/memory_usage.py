"""Memory usage of this process on its device. Imports no torch; uses it if it is loaded."""

import sys
from pathlib import Path
from typing import Any

import psutil

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_CONTROL_GROUP = Path("/sys/fs/cgroup")


def system_memory_bytes() -> tuple[int, int]:
    """Return free and total memory outside of GPUs, within the limit of a container if there is one.

    Pages of files that were not read lately count as free, as they do in a system without containers: the kernel takes
    them back when memory is needed.
    """
    state = psutil.virtual_memory()
    try:
        limit = int((_CONTROL_GROUP / "memory.max").read_text())
        used = int((_CONTROL_GROUP / "memory.current").read_text()) - _reclaimable()
    except (OSError, ValueError):  # no control groups of version 2, or no limit
        return state.available, state.total
    return min(state.available, max(0, limit - max(0, used))), min(state.total, limit)


def _reclaimable() -> int:
    """Return the bytes of the container's inactive file pages, which `memory.current` contains."""
    for line in (_CONTROL_GROUP / "memory.stat").read_text().splitlines():
        name, _, size = line.partition(" ")
        if name == "inactive_file":
            return int(size)
    return 0


def free_memory_bytes(device: Any = None) -> int:
    """Return the free memory of a device of PyTorch; without one, of the GPU in use or the system."""
    cuda = _cuda_in_use()
    if device is not None:
        cuda = sys.modules["torch"].cuda if device.type == "cuda" else None
    return int(cuda.mem_get_info(device)[0]) if cuda is not None else system_memory_bytes()[0]


def memory_in_use_bytes() -> int:
    """Return the GPU memory reserved by PyTorch if this process uses a GPU, else its resident memory.

    An Apple GPU uses the system's memory: the sum of both.
    """
    cuda = _cuda_in_use()
    if cuda is not None:
        return int(cuda.memory_reserved())
    return int(psutil.Process().memory_info().rss) + mps_memory_bytes()


def forget_peak_memory() -> bool:
    """Reset `peak_memory_bytes`; return False if that is impossible (no GPU, and no Linux that permits it)."""
    cuda = _cuda_in_use()
    if cuda is not None:
        cuda.reset_peak_memory_stats()
        return True
    try:
        _CLEAR_REFS.write_text("5")  # proc(5): resets only the peak resident set size
    except OSError:
        return False
    return True


def peak_memory_bytes() -> int:
    """Return the peak memory since `forget_peak_memory`, or since the process started.

    In a process that uses a GPU, the memory reserved by PyTorch, idle blocks included, without the CUDA context; else
    the resident memory, plus what PyTorch has reserved at the moment for an Apple GPU, which keeps no peak.
    """
    cuda = _cuda_in_use()
    return int(cuda.max_memory_reserved()) if cuda is not None else _resident() + mps_memory_bytes()


def mps_memory_bytes() -> int:
    """Return the memory that PyTorch has reserved for an Apple GPU, idle blocks included; 0 without one."""
    torch = sys.modules.get("torch") if sys.platform == "darwin" else None
    return int(torch.mps.driver_allocated_memory()) if torch is not None and torch.backends.mps.is_available() else 0


def _cuda_in_use() -> Any:
    """Return `torch.cuda` if this process has a context on a GPU, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _resident() -> int:
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
