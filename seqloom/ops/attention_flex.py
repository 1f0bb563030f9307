"""Capped attention in one fused kernel, by torch's FlexAttention; chosen with SEQLOOM_KERNELS="attention=flex".

    l at query t, key s  ←  β c tanh(l / c), and -∞ for keys of other documents;   block mask: plain causality

It serves whole rows without earlier keys (training, evaluation) on a GPU, where it is compiled for each shape. On a CPU
the same functions run uncompiled, hold all scores and have no gradient, which is only good for comparing.
"""

from functools import cache, lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from seqloom.ops.attention import Shaping


def attention_flex(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G T K"],
    v: Float[Tensor, "B G T K"],
    documents: Int[Tensor, "B T"] | None,
    shaping: Shaping,
) -> Float[Tensor, "B H T K"]:
    """Causal attention with capped scores.

    Args:
        documents: no query sees a key of another document.
    """
    assert shaping.cap is not None
    assert shaping.clip is None, "clipped rows do not sum to 1, which this kernel cannot do"
    run = _compiled() if q.is_cuda else flex_attention
    score_mod = _score_mod(shaping.cap, shaping.inverse_temperature * shaping.cap, documents)
    y: Tensor = run(q, k, v, score_mod=score_mod, block_mask=_causal(q.shape[2], str(q.device)), enable_gqa=True)
    return y


def _score_mod(cap: float, height: float, documents: Int[Tensor, "B T"] | None) -> Any:
    """The change of one score, as a lambda: what is traced must be free of the shape checks around functions."""
    if documents is None:
        return lambda score, b, h, t, s: height * torch.tanh(score / cap)
    return lambda score, b, h, t, s: torch.where(
        documents[b, t] == documents[b, s], height * torch.tanh(score / cap), float("-inf")
    )


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)


@lru_cache(maxsize=16)
def _causal(tokens: int, device: str) -> BlockMask:
    return create_block_mask(lambda b, h, t, s: t >= s, None, None, tokens, tokens, device=device)
