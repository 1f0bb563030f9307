"""Matrix products in C++: FP32 or BF16 operands with any strides, FP32 sums, the result rounded once.

The result of a row depends neither on the other rows nor on the number of threads.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.ops.native.call import FLAG, POINTER, SIZE, THREADS, kernel, suffix, threads

_OPERAND = (POINTER, SIZE, SIZE)
_TYPES = (SIZE, SIZE, SIZE, *_OPERAND, *_OPERAND, POINTER, SIZE, FLAG, FLAG, THREADS)


def product_native(a: Float[Tensor, "M K"], b: Float[Tensor, "K N"], dtype: torch.dtype) -> Float[Tensor, "M N"]:
    """a b in FP32 or BF16."""
    out = torch.empty(a.shape[0], b.shape[1], dtype=dtype)
    _multiply(a, b, out, accumulate=False)
    return out


def add_product_native(total: Float[Tensor, "M N"], a: Float[Tensor, "M K"], b: Float[Tensor, "K N"]) -> None:
    """total += a b, for a total in FP32 whose rows are contiguous."""
    assert total.dtype == torch.float32
    _multiply(a, b, total, accumulate=True)


def torch_is_faster() -> bool:
    """Whether the library that torch has for FP32 products is the faster one on this processor."""
    answer = torch.zeros((), dtype=torch.int32)
    kernel("torch_multiplies_faster", POINTER)(answer.data_ptr())
    return bool(answer)


def _multiply(a: Tensor, b: Tensor, out: Tensor, *, accumulate: bool) -> None:
    (m, k), n = a.shape, b.shape[1]
    assert len(b) == k, (a.shape, b.shape)
    assert out.shape == (m, n), (a.shape, b.shape, out.shape)
    assert out.stride(1) == 1 or n == 1
    if out.numel():
        _kernel(a.dtype, b.dtype)(
            m, n, k, a.data_ptr(), *a.stride(), b.data_ptr(), *b.stride(),
            out.data_ptr(), out.stride(0), out.dtype == torch.bfloat16, accumulate, threads(),
        )  # fmt: skip


@lru_cache
def _kernel(a: torch.dtype, b: torch.dtype) -> Callable[..., None]:
    return kernel(f"product_{suffix(a)}_{suffix(b)}", *_TYPES)
