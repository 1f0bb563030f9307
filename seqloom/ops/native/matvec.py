"""y = x W^T against weights as they are stored, plain or packed: the product of generation, and of invariant inference.

The weights are read once, and cast or unpacked on the way: nothing is written back. With few rows that takes the time
of reading W, with many that of the arithmetic. Sums are FP32 in a fixed order, so a row has the same result, to the
last bit, among any number of neighbours.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.ops.native.call import POINTER, SIZE, THREADS, kernel, suffix, threads
from seqloom.ops.native.matrix import Weight, matrices

MOST_ROWS = 32
"""With more, a product whose order of sums is free to follow the number of rows is a little faster."""

_TYPES = (POINTER, POINTER, POINTER, SIZE, SIZE, SIZE, SIZE, THREADS)


def matvec(x: Float[Tensor, "*B I"], weight: Weight) -> Float[Tensor, "*B O"]:
    """x W^T in the dtype of `x`, without gradients. Plain weights count as if they had been cast to it.

    Args:
        x: FP32 or BF16 in memory of the CPU.
        weight: plain or packed, [O, I].
    """
    outputs, inputs = weight.shape
    x = x.contiguous()
    if isinstance(weight, Tensor) and weight.stride(1) != 1:
        weight = weight.contiguous()
    y = torch.empty((*x.shape[:-1], outputs), dtype=x.dtype)
    if y.numel():
        apart = weight.stride(0) if isinstance(weight, Tensor) else inputs
        _form(x.dtype)(
            x.data_ptr(), matrices(weight), y.data_ptr(), y.numel() // outputs, outputs, inputs, apart, threads()
        )
    return y


@lru_cache
def _form(dtype: torch.dtype) -> Callable[..., None]:
    return kernel(f"matvec_{suffix(dtype)}", *_TYPES)
