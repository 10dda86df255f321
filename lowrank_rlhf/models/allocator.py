"""How the C library hands memory to large tensors on a CPU, and PyTorch on a GPU."""

import ctypes
import gc
import os
import sys
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_KEPT_BYTES = (1 << 31) - 1  # the most that mallopt takes
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # oneDNN's, and that of PyTorch's layer above it
_KEPT_KERNELS = "64"


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors, up to 2 GiB, instead of giving each back to the kernel.

    By default every tensor over 32 MB is mapped afresh, and the kernel clears each of its pages again at the first
    touch: a product with 640 x 32,768 numbers took 127 ms, most of it that. Elsewhere than on glibc nothing happens.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def keep_few_kernels() -> None:
    """Let oneDNN keep the code of the newest 64 shapes of matrix products, unless the environment says otherwise.

    By default it keeps 1,024, half a megabyte each, and rows are cut to their longest, so that hardly a shape comes
    again: 630 MB in a long run. All layers of a pass have the same dozen shapes, and making one anew takes 0.4 ms.
    To be called before the first product.
    """
    for name in _CACHES:
        os.environ.setdefault(name, _KEPT_KERNELS)


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
