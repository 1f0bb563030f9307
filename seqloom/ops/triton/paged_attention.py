"""Attention of a few tokens to the pages of their rows, read once where they lie.

A program has one row, one key-value head with the queries that share it, and one of several runs of the row's pages:
few rows would leave most of a GPU idle. How many pages there are is read on the GPU, so the same launch serves rows of
any length, and a recorded step any later one. Shares of the runs are put together in torch:

    y = Σ_s exp(m_s - m) Y_s / Σ_s exp(m_s - m) Z_s     m_s the largest score of a run, Y_s and Z_s its sums under it

Papers: "FlashAttention" (2022); runs of keys as in Flash-Decoding (2023).
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from seqloom.ops.triton.tiles import dot, launch, power_of_two, precision, unit_stride

_MOST_QUERIES, _MOST_BYTES = 128, 2**15
"""Tokens times heads that share a key-value head, since more are a prompt; and of a page's keys: keys and values, three
copies of each in FP32, lie in shared memory."""

_PROGRAMS, _MOST_RUNS = 256, 32
_A_WARP = 2**12
"""Scores and sums that the registers of a warp hold besides all else."""


def serves(q: Float[Tensor, "B H T K"], keys: Float[Tensor, "N G K S"]) -> bool:
    """Whether queries are few and pages small enough."""
    queries = q.shape[1] // keys.shape[1] * q.shape[2]
    return queries <= _MOST_QUERIES and power_of_two(q.shape[3]) * keys.shape[3] * keys.itemsize <= _MOST_BYTES


def paged_attention_triton(
    q: Float[Tensor, "B H T K"],
    keys: Float[Tensor, "N G K S"],
    values: Float[Tensor, "N G S K"],
    tables: Int32[Tensor, "B P"],
    lengths: Int64[Tensor, "B"],
    scale: float,
) -> Float[Tensor, "B H T K"]:
    """Arguments and result as in `seqloom.ops.paged_attention.paged_attention`."""
    B, H, T, K = q.shape
    G, S = keys.shape[1], keys.shape[3]
    queries, width = H // G * T, power_of_two(K)
    runs = min(_MOST_RUNS, max(1, _PROGRAMS // (B * G)))
    q, tables, rows = unit_stride(q), unit_stride(tables), power_of_two(queries)
    warps = min(16, power_of_two(-(-rows * (S + width) // _A_WARP), 4))
    sums = torch.empty(B, G, runs, rows, width, device=q.device)
    largest, total = (torch.empty(B, G, runs, rows, device=q.device) for _ in range(2))
    launch(
        _attend, (B * G, runs), q, keys, values, tables, lengths, sums, largest, total, scale,
        *q.stride()[:3], tables.stride(0),
        G=G, T=T, QUERIES=queries, K=K, S=S, RUNS=runs, BQ=rows, BK=width, PRECISION=precision(q.dtype), warps=warps,
    )  # fmt: skip
    share = (largest - largest.amax(2, keepdim=True)).exp()
    y = (sums * share[..., None]).sum(2) / (total * share).sum(2)[..., None]
    return y[:, :, :queries, :K].unflatten(2, (-1, T)).flatten(1, 2).to(q.dtype)


@triton.jit
@no_type_check
def _attend(
    q, keys, values, tables, lengths, sums, largest, total, scale, q_row, q_head, q_token, table_row,
    G: tl.constexpr, T: tl.constexpr, QUERIES: tl.constexpr, K: tl.constexpr, S: tl.constexpr, RUNS: tl.constexpr,
    BQ: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, group, run = (tl.program_id(0) // G).to(tl.int64), tl.program_id(0) % G, tl.program_id(1)
    before = tl.load(lengths + row).to(tl.int32)
    pages = (before + T + S - 1) // S
    each = (pages + RUNS - 1) // RUNS
    query, k, place = tl.arange(0, BQ), tl.arange(0, BK), tl.arange(0, S)
    in_queries, in_width = query < QUERIES, k < K
    head, token = group * (QUERIES // T) + query // T, query % T
    asked = q + row * q_row + head[:, None] * q_head + token[:, None] * q_token + k[None, :]
    asking = tl.load(asked, mask=in_queries[:, None] & in_width[None, :], other=0.0)
    top = tl.full([BQ], float("-inf"), tl.float32)
    weights = tl.zeros([BQ], tl.float32)
    mixed = tl.zeros([BQ, BK], tl.float32)
    for number in range(run * each, tl.minimum((run + 1) * each, pages)):
        page = (tl.load(tables + row * table_row + number).to(tl.int64) * G + group) * K * S
        there = number * S + place
        key = tl.load(keys + page + k[:, None] * S + place[None, :], mask=in_width[:, None], other=0.0)
        score = dot(asking, key, PRECISION) * scale
        score = tl.where(there[None, :] <= before + token[:, None], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        known = tl.where(higher == float("-inf"), 0.0, higher)
        weight, fade = tl.exp(score - known[:, None]), tl.exp(top - known)
        in_row = (there < before + T)[:, None] & in_width[None, :]  # what lies behind may be NaN
        value = tl.load(values + page + place[:, None] * K + k[None, :], mask=in_row, other=0.0)
        mixed = mixed * fade[:, None] + dot(weight.to(value.dtype), value, PRECISION)
        weights, top = weights * fade + tl.sum(weight, 1), higher
    at = ((row * G + group) * RUNS + run) * BQ + query
    tl.store(largest + at, top)
    tl.store(total + at, weights)
    tl.store(sums + at[:, None] * BK + k[None, :], mixed)
