"""Causal grouped-query attention without positions, over packed documents and with keys of earlier tokens.

    y_t = Σ_s softmax_s( q_t·k_s / √K ) v_s     over the keys s up to the token t in its own document

Tensors are heads first (B H T K). The H query heads share G key-value heads in consecutive runs of H / G.
Paper: Nemotron-H, section 2.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from seqloom.ops.kernels import chosen


def attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    documents: Int[Tensor, "B T"] | None = None,
    lengths: Int[Tensor, "B"] | None = None,
) -> Float[Tensor, "B H T K"]:
    """Attend with the implementation chosen for this device and dtype.

    Args:
        documents: document numbers of packed rows; no query sees a key of another document, and keys of earlier
            calls belong to the first one. -1 marks padding on the right, whose output is zero.
        lengths: tokens each row had before this call: the queries of row r are its tokens lengths_r to
            lengths_r + T - 1, and its keys are in the columns of the same numbers. None means zero everywhere.
    """
    visible, causal = _visibility(q, k, documents, lengths)
    if chosen("attention", q.device, q.dtype) == "reference":
        y = attention_reference(q, k, v, visible, causal)
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal, enable_gqa=True)
    return y if documents is None else torch.where(documents[:, None, :, None] < 0, 0.0, y)


def attention_reference(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    visible: Bool[Tensor, "#B 1 T S"] | None,
    causal: bool,
) -> Float[Tensor, "B H T K"]:
    """Softmax attention as the formula reads, in FP32 or wider.

    Args:
        visible: which keys each query sees.
        causal: see the keys up to the query's own number (instead of `visible`).
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    k, v = (part.to(dtype).repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
    scores = q.to(dtype) @ k.mT / q.shape[-1] ** 0.5
    if causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    return (scores.softmax(-1) @ v).to(q.dtype)


def _visibility(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    documents: Int[Tensor, "B T"] | None,
    lengths: Int[Tensor, "B"] | None,
) -> tuple[Bool[Tensor, "#B 1 T S"] | None, bool]:
    """Which keys each query sees, as a mask or, where none is needed, as plain causality."""
    tokens, keys = q.shape[2], k.shape[2]
    start = 0 if lengths is None else int(lengths[0])
    even = start + tokens == keys and (lengths is None or bool((lengths == start).all()))
    assert lengths is not None or even, f"{keys} keys for {tokens} queries need lengths"
    if documents is None and even and (start == 0 or tokens == 1):
        return None, tokens > 1
    before = torch.zeros(1, 1, dtype=torch.int64) if lengths is None else lengths[:, None]
    before = before.to(q.device)
    column = torch.arange(keys, device=q.device)
    place = before + torch.arange(tokens, device=q.device)  # the column of each query's own key
    visible = column <= place[:, :, None]
    if documents is not None:
        number = documents.gather(1, (column - before).clamp(0, tokens - 1).expand(len(documents), -1))  # of each key
        visible = visible & (number[:, None] == documents[:, :, None])
    return visible[:, None], False
