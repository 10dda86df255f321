"""Memory usage of this process on its device. Imports no torch; uses it if it is loaded."""

import sys
from pathlib import Path
from typing import Any

import psutil

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_CONTROL_GROUP = Path("/sys/fs/cgroup")


def system_memory_bytes() -> tuple[int, int]:
    """Return free and total memory outside of GPUs, within the limit of a container if there is one."""
    state = psutil.virtual_memory()
    try:
        limit = int((_CONTROL_GROUP / "memory.max").read_text())
        used = int((_CONTROL_GROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no control groups of version 2, or no limit
        return state.available, state.total
    return min(state.available, max(0, limit - used)), min(state.total, limit)


def free_memory_bytes() -> int:
    """Return the free memory of the GPU if this process uses one, else that of the system."""
    cuda = _cuda_in_use()
    return int(cuda.mem_get_info()[0]) if cuda is not None else system_memory_bytes()[0]


def memory_in_use_bytes() -> int:
    """Return the GPU memory reserved by PyTorch if this process uses a GPU, else its resident memory."""
    cuda = _cuda_in_use()
    return int(cuda.memory_reserved()) if cuda is not None else int(psutil.Process().memory_info().rss)


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
    the resident memory.
    """
    cuda = _cuda_in_use()
    return int(cuda.max_memory_reserved()) if cuda is not None else _resident()


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
