"""Causal grouped-query attention without positions, over packed documents and with keys of earlier tokens.

    y_t = Σ_s softmax_s( q_t·k_s / √K ) v_s     over the keys s up to the token t in its own document

Tensors are heads first (B H T K). The H query heads share G key-value heads in consecutive runs of H / G.
Scores may be capped and probabilities clipped (`Shaping`); long rows are then taken in pieces of queries, each
recomputed in the backward pass, so that memory grows with the tokens and not with their square. There are two native
forms for plain scores: of generation, without gradients or documents, and of training in FP32.
Paper: Nemotron-H, section 2; shaping from "Methods of improving LLM training stability" (arXiv 2410.16682).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from seqloom.ops.kernels import chosen
from seqloom.ops.linear import bf16_units

_SCORES = 2**24
"""Scores held at once where they are shaped, unless a single query has more."""


class Shaping(NamedTuple):
    """What happens to scores l and probabilities p, in this order:

    l ← c tanh(l / c),   p = softmax(β l),   p ← clip((ζ - γ) p + γ, 0, 1) on the keys that are seen

    Attributes:
        cap: c.
        inverse_temperature: β.
        clip: γ, at most 0, and ζ, at least 1.
    """

    cap: float | None = None
    inverse_temperature: float = 1.0
    clip: tuple[float, float] | None = None

    def probabilities(
        self, scores: Float[Tensor, "*B T S"], visible: Bool[Tensor, "*#B T S"] | None
    ) -> Float[Tensor, "*B T S"]:
        """From scores q·k / √K to what weighs the values; hidden keys weigh nothing, whatever the cap."""
        if self.cap is not None:
            scores = self.cap * torch.tanh(scores / self.cap)
        if self.inverse_temperature != 1:
            scores = scores * self.inverse_temperature
        if visible is not None:
            scores = scores.masked_fill(~visible, float("-inf"))
        p = scores.softmax(-1)
        if self.clip is None:
            return p
        low, high = self.clip
        return ((high - low) * p + low).clamp(0, 1)


PLAIN = Shaping()


def attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    documents: Int[Tensor, "B T"] | None = None,
    lengths: Int[Tensor, "B"] | None = None,
    shaping: Shaping = PLAIN,
) -> Float[Tensor, "B H T K"]:
    """Attend with the implementation chosen for this device and dtype.

    Args:
        documents: document numbers of packed rows; no query sees a key of another document, and keys of earlier
            calls belong to the first one. -1 marks padding on the right, whose output is zero.
        lengths: tokens each row had before this call: the queries of row r are its tokens lengths_r to
            lengths_r + T - 1, and its keys are in the columns of the same numbers. None means zero everywhere.
    """
    form = chosen("attention", q.device, q.dtype, q, k, v, documents, lengths)
    plain = shaping.cap is None and shaping.clip is None
    if form == "native" and plain and documents is None and q.dtype == k.dtype and not _learns(q, k, v):
        from seqloom.ops.native.attention import attention_native

        return attention_native(q, k, v, lengths, shaping.inverse_temperature / q.shape[-1] ** 0.5)
    if form == "native" and plain and lengths is None and q.dtype == k.dtype == v.dtype and _native_learns(q.dtype):
        from seqloom.ops.native.attention_training import attention_training_native

        return attention_training_native(q, k, v, documents, shaping.inverse_temperature / q.shape[-1] ** 0.5)
    if form == "reference":
        y = attention_reference(q, k, v, *_visibility(q, k, documents, lengths), shaping)
    elif plain:
        visible, causal = _visibility(q, k, documents, lengths)
        scale = None if shaping.inverse_temperature == 1 else shaping.inverse_temperature / q.shape[-1] ** 0.5
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal, scale=scale, enable_gqa=True)
    elif form == "flex" and q.is_cuda and shaping.clip is None and lengths is None:
        from seqloom.ops.attention_flex import attention_flex

        y = attention_flex(q, k, v, documents, shaping)
    else:
        y = attention_in_pieces(q, k, v, documents, lengths, shaping)
    return y if documents is None else torch.where(documents[:, None, :, None] < 0, 0.0, y)


def _native_learns(dtype: torch.dtype) -> bool:
    """Whether the native form with gradients is the faster one: for BF16, where torch has no units for it."""
    return dtype == torch.float32 or not bf16_units()


def _learns(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def attention_reference(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    visible: Bool[Tensor, "#B 1 T S"] | None,
    causal: bool,
    shaping: Shaping = PLAIN,
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
    return (shaping.probabilities(scores, visible) @ v).to(q.dtype)


def attention_in_pieces(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    documents: Int[Tensor, "B T"] | None,
    lengths: Int[Tensor, "B"] | None,
    shaping: Shaping,
) -> Float[Tensor, "B H T K"]:
    """The reference over runs of queries, each with only the keys up to its end; no score outlives its run."""
    B, H, T, _ = q.shape
    size = max(1, _SCORES // (B * H * k.shape[2]))
    before = 0 if lengths is None else k.shape[2] - T
    parts = []
    for first in range(0, T, size):
        last = min(first + size, T)
        keys = slice(0, before + last)
        visible = _visible(T, slice(first, last), keys.stop, documents, lengths, q.device)
        piece = (q[:, :, first:last], k[:, :, keys], v[:, :, keys], visible, shaping)
        if size < T and torch.is_grad_enabled():
            parts.append(checkpoint(_grouped, *piece, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_grouped(*piece))
    return torch.cat(parts, 2)


def _grouped(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    visible: Bool[Tensor, "#B 1 T S"],
    shaping: Shaping,
) -> Float[Tensor, "B H T K"]:
    """Attention in FP32 or wider, without repeating keys and values for the heads that share them."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    groups, tokens = k.shape[1], q.shape[2]
    rows = (q.to(dtype) / q.shape[-1] ** 0.5).unflatten(1, (groups, -1)).flatten(2, 3)
    scores = (rows @ k.to(dtype).mT).unflatten(2, (-1, tokens))
    y = shaping.probabilities(scores, visible[:, :, None]).flatten(2, 3) @ v.to(dtype)
    return y.unflatten(2, (-1, tokens)).flatten(1, 2).to(q.dtype)


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
    return _visible(tokens, slice(0, tokens), keys, documents, lengths, q.device), False


def _visible(
    tokens: int,
    queries: slice,
    keys: int,
    documents: Int[Tensor, "B T"] | None,
    lengths: Int[Tensor, "B"] | None,
    device: torch.device,
) -> Bool[Tensor, "#B 1 Q S"]:
    """Which of the first keys a run of queries sees.

    Args:
        tokens: T, of which `queries` are a run.
    """
    before = torch.zeros(1, 1, dtype=torch.int64) if lengths is None else lengths[:, None]
    before = before.to(device)
    column = torch.arange(keys, device=device)
    place = before + torch.arange(queries.start, queries.stop, device=device)  # the column of each query's own key
    visible = column <= place[:, :, None]
    if documents is not None:
        number = documents.gather(1, (column - before).clamp(0, tokens - 1).expand(len(documents), -1))  # of each key
        visible = visible & (number[:, None] == documents[:, queries, None])
    return visible[:, None]
