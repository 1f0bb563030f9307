"""An attention layer over pages for a few tokens of generation in C++; see `ops.native.step`."""

from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from seqloom.ops.native.call import FLAG, NUMBER, POINTER, SIZE, THREADS, kernel, suffix, threads
from seqloom.ops.native.paged_attention import check
from seqloom.ops.native.step import LAYER, AttentionWeights, tokens
from seqloom.ops.paged_attention import Pages

_STEP = (*LAYER, *[SIZE] * 7, *[POINTER] * 4, FLAG, NUMBER, NUMBER, NUMBER, THREADS)


def paged_attention_step(
    x: Float[Tensor, "B T D"],
    weights: AttentionWeights,
    pages: Pages,
    tables: Int32[Tensor, "B P"],
    lengths: Int64[Tensor, "B"],
) -> Float[Tensor, "B T D"]:
    """
    Args:
        pages: get the keys and values of these tokens too.
        lengths: tokens each row had before.
    """
    check(x.dtype, x.shape[1], pages, tables, lengths)
    y = torch.empty_like(x)
    _, groups, head_width, page_tokens = pages.keys.shape
    _form(x.dtype)(
        *tokens(x, y), *weights.told, *x.shape[:2], weights.heads, groups, head_width, page_tokens, tables.shape[1],
        tables.data_ptr(), lengths.data_ptr(), pages.keys.data_ptr(), pages.values.data_ptr(), pages.coded,
        pages.k_scale, pages.v_scale, weights.scale * pages.k_scale, threads(),
    )  # fmt: skip
    return y


@lru_cache
def _form(dtype: torch.dtype) -> Callable[..., None]:
    return kernel(f"paged_attention_step_{suffix(dtype)}", *_STEP)
