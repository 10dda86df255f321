"""How much memory this process takes where its model lives. Imports no torch; looks at one that is loaded."""

import sys
from pathlib import Path
from typing import Any

import psutil

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory_in_use_bytes() -> int:
    """What PyTorch holds of the card in a process that uses a GPU, else this process's resident memory."""
    cuda = _cuda_in_use()
    return int(cuda.memory_reserved()) if cuda is not None else int(psutil.Process().memory_info().rss)


def forget_peak_memory() -> bool:
    """Let `peak_memory_bytes` begin anew; False where that cannot be (no GPU, and no Linux that permits it)."""
    cuda = _cuda_in_use()
    if cuda is not None:
        cuda.reset_peak_memory_stats()
        return True
    try:
        _CLEAR_REFS.write_text("5")  # proc(5): resets the peak resident set size, nothing else
    except OSError:
        return False
    return True


def peak_memory_bytes() -> int:
    """The most memory since `forget_peak_memory`, or since the process began.

    In a process that uses a GPU it is what PyTorch held of the card, idle blocks included, but not the CUDA context;
    else this process's resident memory.
    """
    cuda = _cuda_in_use()
    return int(cuda.max_memory_reserved()) if cuda is not None else _resident()


def _cuda_in_use() -> Any:
    """`torch.cuda`, once this process has a context on a GPU."""
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
