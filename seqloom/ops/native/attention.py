"""Attention without gradients in C++: for the tokens of a prompt, and for the next ones over what is remembered."""

from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqloom.ops.native.call import FLAG, NUMBER, POINTER, SIZE, THREADS, kernel, pointer, suffix, threads

FEW_TOKENS = 16
"""Up to so many queries a row share out the keys to threads; more share out the queries."""

_TYPES = (POINTER, POINTER, POINTER, POINTER, POINTER, *[SIZE] * 11, NUMBER, FLAG, THREADS)


def attention_native(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    lengths: Int[Tensor, "B"] | None,
    scale: float,
) -> Float[Tensor, "B H T K"]:
    """Softmax attention of the formula, the queries of a row being the last of its tokens; no gradients.

    Args:
        lengths: tokens each row had before this call; None means zero everywhere.
        scale: of the scores.
    """
    B, H, T, K = q.shape
    if q.stride(3) != 1:
        q = q.contiguous()
    if k.stride() != v.stride() or k.stride(3) != 1:
        k, v = k.contiguous(), v.contiguous()
    if lengths is None:
        lengths = torch.zeros(B, dtype=torch.int64)
    assert q.dtype == k.dtype == v.dtype
    assert lengths.dtype == torch.int64
    assert lengths.is_contiguous()
    y = q.new_empty(B, T, H, K)
    if y.numel():
        _form(q.dtype)(
            pointer(q), pointer(k), pointer(v), pointer(y), pointer(lengths), B, H, k.shape[1], T, K,
            *q.stride()[:3], *k.stride()[:3], scale, T <= FEW_TOKENS, threads(),
        )  # fmt: skip
    return y.transpose(1, 2)


@lru_cache
def _form(dtype: torch.dtype) -> Callable[..., None]:
    return kernel(f"attention_{suffix(dtype)}", *_TYPES)
