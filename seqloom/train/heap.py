"""Memory that a training keeps for its next step, in large pages.

Every step takes and gives back the same gigabytes. By itself glibc returns freed memory to the system once 64 MB of it
lie at the end of the heap, and each of its pages is cleared anew when the next step first touches it: in small models
a twentieth of the time. On Linux the first gigabyte that is added to the heap lies in pages of 2 MB, of which a product
that walks through many rows finds all addresses at once; it is reserved, and becomes memory as it is touched.
"""

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator

from seqloom.nn.large_pages import LARGE

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
_LARGEST_IN_HEAP = 32 << 20  # the most that glibc allows, and itself arrives at
_KEPT, _KEPT_BY_ITSELF = (1 << 31) - 1, 64 << 20
_CHOSEN_BY_HAND = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"}
_RESERVED, _PAD_BY_ITSELF = 1 << 30, 128 << 10


@contextlib.contextmanager
def kept_heap() -> Iterator[None]:
    """Inside, freed memory is not returned to the system; does nothing for another C library than glibc, nor where the
    environment says what glibc is to keep."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or _CHOSEN_BY_HAND & os.environ.keys():
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP)
    libc.mallopt(_TRIM_THRESHOLD, _KEPT)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        _reserve(libc)
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, _KEPT_BY_ITSELF)
        libc.malloc_trim(0)


def _reserve(libc: ctypes.CDLL) -> None:
    """Let the heap grow ahead and ask for large pages there; where the system has none, or no room, nothing changes."""
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    before = libc.sbrk(0)
    libc.mallopt(_TOP_PAD, _RESERVED)
    libc.free(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(_LARGEST_IN_HEAP - LARGE))))
    libc.mallopt(_TOP_PAD, _PAD_BY_ITSELF)
    first, last = -(-before // LARGE) * LARGE, libc.sbrk(0) // LARGE * LARGE
    if last > first:
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_HUGEPAGE)
