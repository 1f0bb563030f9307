"""Causal grouped-query attention over keys and values in pages, for the rows of a server: `ops.attention`, elsewhere.

    y_t = Σ_s softmax_s( q_t·k_s / √K ) v_s     over the keys s up to the token t of its own row

A row's key number s lies in page tables[row, s // S], at place s % S, and a page belongs to any row, or to several.
Keys lie turned within a page (K S), so that scores are sums along memory's rows; values lie as they come (S K).
A query is computed by the same operations whatever else is in the call: its own number in its row decides them alone.
The reference takes query by query, and is the portable form where that must hold; elsewhere rows are gathered, or in
Triton, for few queries of a row, read where they lie.
Papers: Nemotron-H, section 2; pages from "Efficient memory management for LLM serving with PagedAttention" (2023).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor
from torch.nn import functional as F

from seqloom.numerics.elements import E4M3
from seqloom.ops.attention import PLAIN, Shaping, attention_in_pieces
from seqloom.ops.kernels import chosen, is_invariant

FP8 = torch.float8_e4m3fn


class Pages(NamedTuple):
    """Keys and values of one layer as stored: as they are computed, or as E4M3 codes (uint8) times a scale.

    Attributes:
        keys: page, key-value head, head width, place in the page.
        values: page, key-value head, place in the page, head width.
    """

    keys: Tensor
    values: Tensor
    k_scale: float = 1.0
    v_scale: float = 1.0

    @property
    def coded(self) -> bool:
        return self.keys.dtype == torch.uint8

    @property
    def page_tokens(self) -> int:
        return self.keys.shape[3]


def paged_append(
    k: Float[Tensor, "B G T K"],
    v: Float[Tensor, "B G T K"],
    pages: Pages,
    tables: Int32[Tensor, "B P"],
    lengths: Int64[Tensor, "B"],
) -> None:
    """Write keys and values of the tokens lengths_r to lengths_r + T - 1 of every row r where the tables say.

    Args:
        tables, lengths: on the device of the pages.
    """
    if chosen("paged_attention", k.device, k.dtype, k, v, *_stored(pages), tables, lengths) == "native":
        from seqloom.ops.native.paged_attention import paged_append_native

        paged_append_native(k, v, pages, tables, lengths)
        return
    if pages.coded:
        k, v = _codes(k, pages.k_scale), _codes(v, pages.v_scale)
    places = lengths[:, None] + torch.arange(k.shape[2], device=k.device)
    page, place = tables.long().gather(1, places // pages.page_tokens), places % pages.page_tokens
    pages.keys[page, :, :, place] = k.transpose(1, 2)
    pages.values[page, :, place] = v.transpose(1, 2)


def paged_attention(
    q: Float[Tensor, "B H T K"],
    pages: Pages,
    tables: Int32[Tensor, "B P"],
    lengths: Int64[Tensor, "B"],
    shaping: Shaping = PLAIN,
) -> Float[Tensor, "B H T K"]:
    """Attend from the tokens lengths_r to lengths_r + T - 1 of every row r, whose keys and values are in the pages.

    Args:
        tables: the pages of each row in order; entries beyond its tokens mean nothing. On the device of the pages, as
            the lengths; on a GPU all of them are read.
        lengths: tokens each row had before these.
    """
    form = chosen("paged_attention", q.device, q.dtype, q, *_stored(pages), tables, lengths)
    plain, scale = shaping.cap is None and shaping.clip is None, shaping.inverse_temperature / q.shape[-1] ** 0.5
    if form == "native" and plain:
        from seqloom.ops.native.paged_attention import paged_attention_native

        return paged_attention_native(q, pages, tables, lengths, scale)
    if form == "triton" and plain and not (pages.coded or is_invariant()):
        from seqloom.ops.triton.paged_attention import paged_attention_triton, serves

        if serves(q, pages.keys):
            return paged_attention_triton(q, pages.keys, pages.values, tables, lengths, scale)
    if form == "reference" or is_invariant():
        return paged_attention_reference(q, pages, tables, lengths, shaping)
    return _gathered(q, pages, tables, lengths, shaping)


def paged_attention_reference(
    q: Float[Tensor, "B H T K"],
    pages: Pages,
    tables: Int32[Tensor, "B P"],
    lengths: Int64[Tensor, "B"],
    shaping: Shaping = PLAIN,
) -> Float[Tensor, "B H T K"]:
    """Query by query, in FP32 or wider; what each one meets has the same shape in every call."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    y = torch.empty_like(q)
    for row, length in enumerate(lengths.tolist()):
        k, v = _rows(pages, tables[row : row + 1], length + q.shape[2], dtype)
        for t in range(q.shape[2]):
            seen = slice(0, length + t + 1)
            query = q[row, :, t].to(dtype).unflatten(0, (k.shape[1], -1)) / q.shape[-1] ** 0.5
            scores = query.contiguous() @ k[0, :, seen].contiguous().mT
            weights = shaping.probabilities(scores, None)
            y[row, :, t] = (weights @ v[0, :, seen].contiguous()).flatten(0, 1).to(q.dtype)
    return y


def _gathered(
    q: Float[Tensor, "B H T K"],
    pages: Pages,
    tables: Int32[Tensor, "B P"],
    lengths: Int64[Tensor, "B"],
    shaping: Shaping,
) -> Float[Tensor, "B H T K"]:
    """All rows at once, as plain attention over copies of what they remember; no shape depends on lengths, but on a
    CPU, where asking for the longest costs nothing."""
    ends = lengths + q.shape[2]
    tokens = int(ends.max()) if ends.is_cpu else tables.shape[1] * pages.page_tokens
    k, v = _rows(pages, tables, tokens, q.dtype)
    column = torch.arange(tokens, device=q.device)
    unused = (column >= ends[:, None])[:, None, :, None]  # leftovers, maybe NaN
    k, v = k.masked_fill(unused, 0), v.masked_fill(unused, 0)
    if shaping.cap is not None or shaping.clip is not None:
        return attention_in_pieces(q, k, v, None, lengths, shaping)
    place = lengths[:, None] + torch.arange(q.shape[2], device=q.device)
    visible = (column <= place[..., None])[:, None]
    scale = shaping.inverse_temperature / q.shape[-1] ** 0.5
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale, enable_gqa=True)


def _rows(
    pages: Pages, tables: Int32[Tensor, "B P"], tokens: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "B G S K"], Float[Tensor, "B G S K"]]:
    """Keys and values of the first tokens of rows, out of their pages."""
    used = tables[:, : -(-tokens // pages.page_tokens)].long()
    used = used.clamp(0, len(pages.keys) - 1)  # a shorter row may have no page there
    k, v = pages.keys[used].mT, pages.values[used]
    if pages.coded:
        k, v = k.contiguous().view(FP8).to(dtype) * pages.k_scale, v.view(FP8).to(dtype) * pages.v_scale
    k, v = (part.to(dtype).transpose(1, 2).flatten(2, 3)[:, :, :tokens] for part in (k, v))
    return k, v


def _codes(x: Tensor, scale: float) -> Tensor:
    return (x.float() / scale).clamp(-E4M3.largest, E4M3.largest).to(FP8).view(torch.uint8)


def _stored(pages: Pages) -> tuple[Tensor, Tensor]:
    """What decides whether a back end can read the pages; codes are numbers to none of the other ops."""
    if pages.coded:
        return pages.keys.view(torch.bool), pages.values.view(torch.bool)
    return pages.keys, pages.values
