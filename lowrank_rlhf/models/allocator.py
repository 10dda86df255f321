"""How the C library hands memory to large tensors on a CPU, and PyTorch on a GPU."""

import ctypes
import gc
import sys
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_KEPT_BYTES = (1 << 31) - 1  # the most that mallopt takes


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors, up to 2 GiB, instead of giving each back to the kernel.

    By default every tensor over 32 MB is mapped afresh, and the kernel clears each of its pages again at the first
    touch: a product with 640 x 32,768 numbers took 127 ms, most of it that. Elsewhere than on glibc nothing happens.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def release_freed_memory() -> None:
    """Give what is free back to the system: between stages, for the next one's tensors may not fit the gaps."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    malloc_trim = _glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _glibc(name: str) -> Any:
    """That function of the C library, where it is glibc."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
