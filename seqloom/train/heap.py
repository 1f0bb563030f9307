"""Memory that a training keeps for its next step.

Every step takes and gives back the same gigabytes. By itself glibc returns freed memory to the system once 64 MB of it
lie at the end of the heap, and each of its pages is cleared anew when the next step first touches it: in small models
a twentieth of the time.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST_IN_HEAP = 32 << 20  # the most that glibc allows, and itself arrives at
_KEPT, _KEPT_BY_ITSELF = (1 << 31) - 1, 64 << 20
_CHOSEN_BY_HAND = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}


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
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, _KEPT_BY_ITSELF)
        libc.malloc_trim(0)
