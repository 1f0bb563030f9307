"""y = x W^T for a few rows against weights as they are stored, at the speed of memory: the product of generation.

The weights are read once, in FP32 or BF16, and cast on the way where the rows have the other format: nothing is
written back. Sums are FP32 in a fixed order, so a row has the same result, to the last bit, among any neighbours.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.ops.native.call import POINTER, SIZE, THREADS, kernel, threads

MOST_ROWS = 32
"""With more, a product that keeps tiles of the weights in the cache is faster."""

_TYPES = (POINTER, POINTER, POINTER, SIZE, SIZE, SIZE, SIZE, THREADS)
_KERNELS = {
    (torch.float32, torch.float32): "matvec_f32",
    (torch.float32, torch.bfloat16): "matvec_f32_widened",
    (torch.bfloat16, torch.bfloat16): "matvec_bf16",
    (torch.bfloat16, torch.float32): "matvec_bf16_rounded",
}


def matvec(x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "*B O"]:
    """x W^T in the dtype of `x`, as if the weights had been cast to it, without gradients.

    Both are FP32 or BF16 in memory of the CPU.
    """
    outputs, inputs = weight.shape
    x = x.contiguous()
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    y = x.new_empty((*x.shape[:-1], outputs))
    if y.numel():
        _form(x.dtype, weight.dtype)(
            x.data_ptr(), weight.data_ptr(), y.data_ptr(), y.numel() // outputs, outputs, inputs, weight.stride(0),
            threads(),
        )  # fmt: skip
    return y


@lru_cache
def _form(x: torch.dtype, weight: torch.dtype) -> Callable[..., None]:
    return kernel(_KERNELS[x, weight], *_TYPES)
