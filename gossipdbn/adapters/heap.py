"""The C library's heap, told to hand memory back: a worker's large arrays come and go, its limit is a container's."""

from __future__ import annotations

import ctypes

__all__ = ["return_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
LARGE_BYTES = 4 << 20
"""Blocks of this size and more are mapped on their own, and gone when they are freed."""
ARENAS = 2
"""Heaps for threads; the default, eight per core, leaves every thread's largest moment resident."""


def return_memory() -> bool:
    """Set glibc's limits for this process; False where the C library is another one.

    Without that, glibc raises its limit for mapped blocks with every one that is freed, up to 32 MiB: arrays of a layer
    then lie in a heap that cannot shrink.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = ((_M_MMAP_THRESHOLD, LARGE_BYTES), (_M_TRIM_THRESHOLD, LARGE_BYTES), (_M_ARENA_MAX, ARENAS))
    return all(mallopt(name, value) == 1 for name, value in settings)
