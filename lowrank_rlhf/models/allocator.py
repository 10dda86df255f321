"""Settings of the allocators: glibc and oneDNN on a CPU, PyTorch on a GPU."""

import ctypes
import gc
import os
import sys
from typing import Any

from lowrank_rlhf.run.memory_usage import free_memory_bytes, memory_in_use_bytes, mps_memory_bytes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # malloc.h of glibc
_KEPT_BYTES = (1 << 31) - 1  # the maximum for mallopt
_LARGE_BYTES = 1 << 16
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # of oneDNN, and of PyTorch's layer above it
_KEPT_KERNELS = "64"


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors, up to 2 GiB, instead of returning it to the kernel.

    By default every tensor over 32 MB gets a new mapping, and the kernel clears each page at the first access: most of
    the 127 ms of a product with 640 x 32,768 numbers. No effect without glibc.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def return_large_blocks() -> None:
    """Let glibc return each freed block of 64 KiB or more to the system at once, for a process without tensors.

    By default the limit rises to the largest block that was freed, and a server keeps gaps for its largest answers in
    every thread's heap. No effect without glibc.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def keep_few_kernels() -> None:
    """Limit oneDNN's kernel cache to 64 shapes of matrix products, unless the environment sets another limit.

    By default it caches 1,024 of half a megabyte each. Batches are cut to their longest row, so shapes rarely recur: it
    grew to 630 MB in a long run. All layers of a pass share a dozen shapes, and compiling one takes 0.4 ms. Call this
    before the first product.
    """
    for name in _CACHES:
        os.environ.setdefault(name, _KEPT_KERNELS)


def release_freed_memory() -> None:
    """Return free memory to the system, after loading and between stages: the next tensors may not fit the gaps.

    The objects that remain, 590,000 with libraries and model, are exempt from garbage collection until the next call.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    _trim()


def release_if_short() -> None:
    """Collect garbage; return free memory to the system if the device has less left than this process uses.

    Call it inside a stage. The next tensors reuse most of what is freed, and memory that was returned costs a page
    fault for every 4 KiB: 0.34 of the 5.8 s of a PPO step of 8 x 64 tokens.
    """
    gc.collect()
    if free_memory_bytes() < memory_in_use_bytes():
        _trim()


def _trim() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if mps_memory_bytes():
        sys.modules["torch"].mps.empty_cache()
    malloc_trim = _glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _glibc(name: str) -> Any:
    """Return the function of that name from glibc, or None with another C library."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
