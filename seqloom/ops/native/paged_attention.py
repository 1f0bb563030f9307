"""Attention over pages in C++, and new keys and values into pages: one arithmetic for any number of queries."""

import ctypes
from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from seqloom.ops.native.call import FLAG, NUMBER, POINTER, THREADS, kernel, suffix, threads
from seqloom.ops.paged_attention import Pages

_ATTEND = (*[POINTER] * 7, FLAG, NUMBER, NUMBER, THREADS)
_APPEND = (*[POINTER] * 7, FLAG, NUMBER, NUMBER)
_TYPES = {"paged_attention": _ATTEND, "paged_append": _APPEND}

_Sizes = ctypes.c_int64 * 10


def paged_append_native(
    k: Float[Tensor, "B G T K"],
    v: Float[Tensor, "B G T K"],
    pages: Pages,
    tables: Int32[Tensor, "B P"],
    lengths: Int64[Tensor, "B"],
) -> None:
    if k.stride() != v.stride() or k.stride(3) != 1:
        k, v = k.contiguous(), v.contiguous()
    assert k.dtype == v.dtype
    check(k.dtype, k.shape[2], pages, tables, lengths)
    _form("paged_append", k.dtype)(
        k.data_ptr(), v.data_ptr(), pages.keys.data_ptr(), pages.values.data_ptr(), tables.data_ptr(),
        lengths.data_ptr(), _sizes(k, k.shape[1], pages, tables), pages.coded, pages.k_scale, pages.v_scale,
    )  # fmt: skip


def paged_attention_native(
    q: Float[Tensor, "B H T K"],
    pages: Pages,
    tables: Int32[Tensor, "B P"],
    lengths: Int64[Tensor, "B"],
    scale: float,
) -> Float[Tensor, "B H T K"]:
    """
    Args:
        scale: of the scores.
    """
    if q.stride(3) != 1:
        q = q.contiguous()
    check(q.dtype, q.shape[2], pages, tables, lengths)
    B, H, T, K = q.shape
    y = torch.empty(B, T, H, K, dtype=q.dtype)
    if y.numel():
        _form("paged_attention", q.dtype)(
            q.data_ptr(), y.data_ptr(), pages.keys.data_ptr(), pages.values.data_ptr(), tables.data_ptr(),
            lengths.data_ptr(), _sizes(q, pages.keys.shape[1], pages, tables), pages.coded, scale * pages.k_scale,
            pages.v_scale, threads(),
        )  # fmt: skip
    return y.transpose(1, 2)


def check(
    dtype: torch.dtype, tokens: int, pages: Pages, tables: Int32[Tensor, "B P"], lengths: Int64[Tensor, "B"]
) -> None:
    """See that a call can be made; the memory is written to behind torch's back."""
    room = pages.page_tokens
    assert 256 % room == room % 16 == 0, f"pages of {room} tokens"
    assert pages.keys.dtype == pages.values.dtype == (torch.uint8 if pages.coded else dtype)
    assert pages.keys.shape == pages.values.mT.shape
    for tensor in (pages.keys, pages.values, tables, lengths):
        assert tensor.is_contiguous()
    assert len(lengths) == len(tables)
    assert max(lengths.tolist(), default=0) + tokens <= tables.shape[1] * room


def _sizes(x: Float[Tensor, "B H T K"], groups: int, pages: Pages, tables: Tensor) -> ctypes.Array[ctypes.c_int64]:
    B, H, T, K = x.shape
    return _Sizes(B, H, groups, T, K, pages.page_tokens, tables.shape[1], *x.stride()[:3])


@lru_cache
def _form(name: str, dtype: torch.dtype) -> Callable[..., None]:
    return kernel(f"{name}_{suffix(dtype)}", *_TYPES[name])
