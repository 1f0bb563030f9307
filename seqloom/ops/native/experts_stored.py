"""Routed experts at inference on the CPU, for matrices as they are stored, plain or packed; see experts_stored.cpp."""

from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqloom.ops.native.call import POINTER, SIZE, THREADS, kernel, pointer, suffix, threads
from seqloom.ops.native.matrix import Weight, stack

_TYPES = (*[POINTER] * 8, *[SIZE] * 5, THREADS)


def experts_stored(
    x: Float[Tensor, "S I"], indices: Int[Tensor, "S K"], weights: Float[Tensor, "S K"], up: Weight, down: Weight
) -> Float[Tensor, "S I"]:
    """Each expert on the rows sent to it, without gradients; plain matrices count as if they had been cast to the dtype
    of `x`."""
    (S, K), (E, F, width) = indices.shape, up.shape
    assert S * K < 2**31
    work = torch.empty(2 * S * K + E + 1, dtype=torch.int32)
    outputs, y = torch.empty(S * K, width, dtype=torch.float32), torch.empty(x.shape, dtype=x.dtype)
    x, chosen, weights = x.contiguous(), indices.long().contiguous(), weights.float().contiguous()
    up, down = (each.contiguous() if isinstance(each, Tensor) else each for each in (up, down))
    _form(x.dtype)(
        pointer(x), pointer(chosen), pointer(weights), stack(up), stack(down), pointer(work), pointer(outputs),
        pointer(y), S, K, E, width, F, threads(),
    )  # fmt: skip
    assert int(work[-1]) == S * K, f"a chosen expert is none of the {E}"
    return y


@lru_cache
def _form(dtype: torch.dtype) -> Callable[..., None]:
    return kernel(f"experts_stored_{suffix(dtype)}", *_TYPES)
