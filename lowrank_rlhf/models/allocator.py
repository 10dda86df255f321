"""How the C library hands memory to large tensors on a CPU."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory(limit: int = 1 << 31) -> None:
    """Let glibc reuse the memory of freed tensors, up to `limit` bytes, instead of giving each back to the kernel.

    By default every tensor over 32 MB is mapped afresh, and the kernel clears each of its pages again at the first
    touch: a product with 640 x 32,768 numbers took 127 ms, most of it that. Elsewhere than on glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, limit - 1)
