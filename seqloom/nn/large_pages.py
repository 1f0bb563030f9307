"""Memory in large pages, for what a step of generation reads from end to end: weights, states, keys and values.

A processor remembers where some thousand pages are. With pages of 4 KiB that is less than a model, and every other
page costs a walk through tables, which reading ahead has to wait for; one of 2 MiB stands for 512. Linux gives them to
memory that asks for it before it is first used. Where there are none, memory is as it always is.
"""

import contextlib
import mmap
from math import prod

import torch
from torch import Tensor

LARGE = 2 << 20
"""Bytes of a large page on x86 and on most ARM."""


def empty(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """As `torch.empty`, for memory that costs nothing until it is used."""
    nbytes = prod(shape) * dtype.itemsize
    if device.type != "cpu" or nbytes < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, nbytes + LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    room = torch.frombuffer(memory, dtype=torch.uint8)
    start = -room.data_ptr() % LARGE
    return room[start : start + nbytes].view(dtype).view(shape)
