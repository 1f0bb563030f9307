"""How Python calls a C function of the library: plain pointers, sizes and numbers.

    _forward = kernel("ssd_forward", POINTER, POINTER, SIZE, NUMBER, THREADS)
    _forward(pointer(x), pointer(y), x.numel(), eps, threads())

Nothing is checked on the other side: shapes, dtypes, strides and devices are asserted before.
"""

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from seqloom.ops.native.build import library, why_not

POINTER = ctypes.c_void_p
SIZE = ctypes.c_int64
"""Sizes and strides."""
NUMBER = ctypes.c_float
DOUBLE = ctypes.c_double
FLAG = ctypes.c_int32
THREADS = ctypes.c_int32


@lru_cache
def kernel(name: str, *types: Any) -> Callable[..., None]:
    """The C function `seqloom_<name>` with arguments of these types.

    The library must be there (`library() is not None`); fetch kernels when they are first called, not on import.
    """
    found = library()
    assert found is not None, f"{name} is wanted, but there is no library: {why_not()}"
    function = found[f"seqloom_{name}"]
    function.argtypes = types
    function.restype = None
    return function


def pointer(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers begin; NULL for None. The caller keeps the tensor alive through the call."""
    return None if tensor is None else tensor.data_ptr()


def threads() -> int:
    """How many threads a kernel may use: as many as torch."""
    return torch.get_num_threads()


def suffix(dtype: torch.dtype) -> str:
    """What the names of kernels end in that exist once for each storage type."""
    return {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]
