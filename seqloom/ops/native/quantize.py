"""Fake quantization in C++: one pass for the largest magnitude where a scheme needs the tensor's, one that rounds.

A random Hadamard transform is a pass of its own, which also finds the largest magnitude of what it writes; its result
is then rounded in place. A matrix that lies in memory column by column is taken as its transpose.
"""

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from seqloom.numerics.hadamard import hadamard
from seqloom.numerics.quantized import Axis
from seqloom.numerics.scheme import ScaleKind, Scheme
from seqloom.ops.native.call import FLAG, POINTER, SIZE, THREADS, kernel, pointer, suffix, threads
from seqloom.ops.quantize import Rounded

_ELEMENTS = ("e2m1", "e4m3", "e5m2")
_KINDS: tuple[ScaleKind, ...] = ("fp32", "power_of_two", "e8m0_ceil", "e8m0_floor", "nvfp4", "gam")
"""In the order of small_floats.h."""
_GROUP = 16
"""Points of the transform, and numbers that share a random counter: sides of blocks are whole groups."""

_MATRIX = (POINTER, SIZE, SIZE, SIZE)
_AMAX = (*_MATRIX, POINTER, THREADS)
_HADAMARD = (*_MATRIX, FLAG, FLAG, POINTER, POINTER, THREADS)
_ROUND = (*_MATRIX, POINTER, POINTER, SIZE, SIZE, FLAG, FLAG, FLAG, SIZE, FLAG, THREADS)
_ERRORS = (*_MATRIX, POINTER, SIZE, POINTER, SIZE, SIZE, POINTER, POINTER, THREADS)


def has_native_form(scheme: Scheme) -> bool:
    sides = (scheme.along or _GROUP, scheme.across if scheme.across not in (None, 1) else _GROUP)
    return scheme.scale in _KINDS and all(side % _GROUP == 0 for side in sides)


def rounded_native(
    x: Float[Tensor, "R C"],
    scheme: Scheme,
    axis: Axis,
    amax: Float32[Tensor, ""] | None = None,
    random: int | None = None,
    bits: int = 8,
    signs: tuple[int, ...] | None = None,
) -> Rounded:
    if _lies_turned(x):
        values, scale = rounded_native(x.mT, scheme, 1 if axis == 0 else 0, amax, random, bits, signs)
        return Rounded(values.mT, scale)
    tensor = torch.empty((), dtype=torch.float32)
    if signs is not None:
        x = _hadamard(x, axis, signs, tensor) if len(signs) == _GROUP else hadamard(x, axis, signs)
    x = _rows(x)
    if amax is not None:
        tensor.copy_(amax)
    elif (signs is None or len(signs) != _GROUP) and (scheme.per_tensor or scheme.scale in ("nvfp4", "gam")):
        kernel(f"quantize_amax_{suffix(x.dtype)}", *_AMAX)(*_matrix(x), pointer(tensor), threads())
    dtype = torch.bfloat16 if scheme.exact_in_bf16 else torch.float32
    values = x if signs is not None and dtype == x.dtype else torch.empty(x.shape, dtype=dtype)
    sides = (scheme.along or 0, scheme.across or 0)
    kernel(f"quantize_round_{suffix(x.dtype)}_{suffix(dtype)}", *_ROUND)(
        *_matrix(x), pointer(values), pointer(tensor), *(sides if axis == 0 else sides[::-1]),
        _ELEMENTS.index(scheme.element), _KINDS.index(scheme.scale), 0 if random is None else bits,
        _signed(random or 0), 1 - axis, threads(),
    )  # fmt: skip
    return Rounded(values, tensor)


def relative_errors_native(
    x: Float[Tensor, "R C"], result: Rounded, rows: int, columns: int
) -> tuple[Float32[Tensor, "P"], Int64[Tensor, "P"]]:
    if _lies_turned(x):
        parts = relative_errors_native(x.mT, Rounded(result.values.mT, result.scale), columns, rows)
        down, across = -(-x.shape[0] // rows), -(-x.shape[1] // columns)
        return parts[0].view(across, down).mT.flatten(), parts[1].view(across, down).mT.flatten()
    x, values = _rows(x), _rows(result.values)
    count = -(-x.shape[0] // rows) * -(-x.shape[1] // columns)
    sums, counts = torch.empty(count, dtype=torch.float32), torch.empty(count, dtype=torch.int64)
    kernel(f"quantize_errors_{suffix(x.dtype)}_{suffix(values.dtype)}", *_ERRORS)(
        *_matrix(x), pointer(values), values.stride(0), pointer(result.scale), rows, columns, pointer(sums),
        pointer(counts), threads(),
    )  # fmt: skip
    return sums, counts


def _hadamard(x: Float[Tensor, "R C"], axis: Axis, signs: tuple[int, ...], amax: Tensor) -> Float[Tensor, "R2 C2"]:
    """The transform of 16 points, and its largest magnitude."""
    x = _rows(x)
    shape = list(x.shape)
    shape[axis] += -shape[axis] % _GROUP
    result = torch.empty(shape, dtype=torch.bfloat16)
    negative = sum(1 << place for place, sign in enumerate(signs) if sign < 0)
    kernel(f"quantize_hadamard_{suffix(x.dtype)}", *_HADAMARD)(
        *_matrix(x), 1 - axis, negative, pointer(result), pointer(amax), threads()
    )
    return result


def _lies_turned(x: Tensor) -> bool:
    return x.stride(0) == 1 and x.stride(1) != 1


def _rows(x: Tensor) -> Tensor:
    """Each row in one piece, though perhaps apart."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _matrix(x: Tensor) -> tuple[int | None, int, int, int]:
    return pointer(x), *x.shape, x.stride(0)


def _signed(key: int) -> int:
    """64 bits as ctypes passes them."""
    return (key & (1 << 64) - 1) - ((key & 1 << 63) << 1)
