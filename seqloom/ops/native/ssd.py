"""The scan in C++: forward, backward, and token after token; equations and meaning as in `ops/ssd.py`.

What surrounds the scan in a mixer belongs to it here: the softplus of the step sizes and the skip cost no pass over
memory of their own. x, b and c may be slices of one tensor, and their gradients come as slices of one. Only the inputs
and the states between pieces are kept for the backward pass.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqloom.ops.kernels import is_invariant
from seqloom.ops.native.call import POINTER, THREADS, kernel, pointer, suffix, threads

FEW_TOKENS = 8
"""Up to so many tokens are taken one by one, if no gradient is wanted, and any number inside `kernels.invariant()`."""

MOST_HEADS = 8
"""Heads of a group that are worked on side by side; as in ssd.h."""


def ssd_native(
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    a: Float[Tensor, "H"],
    b: Float[Tensor, "B T G N"],
    c: Float[Tensor, "B T G N"],
    state: Float[Tensor, "B H P N"] | None = None,
    documents: Int[Tensor, "B T"] | None = None,
    *,
    chunk: int,
    dt_bias: Float[Tensor, "H"] | None = None,
    skip: Float[Tensor, "H"] | None = None,
) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B H P N"]]:
    """Arguments and results as in `ops.ssd.ssd`; x, b and c have one dtype, FP32 or BF16."""
    (rows, tokens, heads, width), (groups, state_width) = x.shape, b.shape[2:]
    assert x.dtype == b.dtype == c.dtype, (x.dtype, b.dtype, c.dtype)
    assert b.shape == c.shape == (rows, tokens, groups, state_width), (b.shape, c.shape)
    assert dt.shape == (rows, tokens, heads), dt.shape
    assert heads % groups == 0, f"{heads} heads cannot be split into {groups} groups"
    assert all(t is None or t.shape == (heads,) for t in (a, dt_bias, skip))
    assert state is None or state.shape == (rows, heads, width, state_width), state.shape
    assert documents is None or documents.shape == (rows, tokens), documents.shape
    state, dt_bias, skip = _fp32(state), _fp32(dt_bias), _fp32(skip)
    inputs = _Inputs(x, dt.float(), a.float(), b, c, state, dt_bias, skip, documents, chunk)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs[:8]):
        y, final = _Scan.apply(*inputs)
        return y, final
    y, final, _ = _forward(inputs, keep=False)
    return y, final


class _Inputs(NamedTuple):
    x: Tensor
    dt: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    state: Tensor | None
    dt_bias: Tensor | None
    skip: Tensor | None
    documents: Tensor | None
    chunk: int


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *values: Any) -> tuple[Tensor, Tensor]:
        inputs = _Inputs(*values)
        y, final, between = _forward(inputs, keep=True)
        ctx.save_for_backward(*inputs[:-1], between)
        ctx.chunk = inputs.chunk
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        *saved, between = ctx.saved_tensors
        inputs = _Inputs._make([*saved, ctx.chunk])
        x, b, state = inputs.x, inputs.b, inputs.state
        (rows, tokens, heads, width), (groups, state_width) = x.shape, b.shape[2:]
        # x, b and c are mostly slices of one tensor in this order: so are their gradients.
        sizes = (heads * width, groups * state_width, groups * state_width)
        dx, db, dc = torch.empty(rows, tokens, sum(sizes), dtype=x.dtype).split(sizes, dim=-1)
        dx, db, dc = (t.unflatten(-1, (-1, n)) for t, n in ((dx, width), (db, state_width), (dc, state_width)))
        blocks = -(-heads // (groups * MOST_HEADS))
        parts = [torch.empty(rows, tokens, groups, blocks, state_width) if blocks > 1 else None for _ in "bc"]
        ddt = torch.empty(rows, tokens, heads)
        dbias, da, dskip = torch.empty(3, rows, heads, dtype=torch.float64)
        dstate = None if state is None else torch.empty(state.shape)
        dy = torch.zeros(x.shape, dtype=x.dtype) if dy is None else _rows(dy)
        dfinal = None if dfinal is None else dfinal.contiguous()
        _call(
            "ssd_backward",
            inputs,
            _chunk(inputs),
            (between, dy, dfinal, dx, db, dc, *parts, ddt, dbias, da, dskip, dstate),
            (*dx.stride()[:3], *db.stride()[:3], *dc.stride()[:3], *dy.stride()[:3]),
        )
        for gradient, part in zip((db, dc), parts, strict=True):
            if part is not None:
                gradient.copy_(part.sum(3))
        dbias, da, dskip = (per_row.sum(0).float() for per_row in (dbias, da, dskip))
        small = (dstate, None if inputs.dt_bias is None else dbias, None if inputs.skip is None else dskip)
        return dx, ddt, da, db, dc, *small, None, None


def _forward(inputs: _Inputs, *, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Outputs, the last state, and the states between pieces if they are to be kept."""
    rows, tokens, heads, width = inputs.x.shape
    y = torch.empty(inputs.x.shape, dtype=inputs.x.dtype)
    final = torch.empty(rows, heads, width, inputs.b.shape[3], dtype=torch.float32)
    if tokens > 0 and not keep and (tokens <= FEW_TOKENS or is_invariant()):
        _call("ssd_step", inputs, tokens, (y, final))
        return y, final, None
    chunk = _chunk(inputs)
    borders = max(0, (tokens - 1) // chunk)
    between = torch.empty(rows, heads, borders, width, inputs.b.shape[3]) if keep else None
    _call("ssd_forward", inputs, chunk, (y, between, final))
    return y, final, between


def _chunk(inputs: _Inputs) -> int:
    return max(1, min(inputs.chunk, inputs.x.shape[1]))


def _call(
    name: str, inputs: _Inputs, chunk: int, tensors: tuple[Tensor | None, ...], strides: tuple[int, ...] = ()
) -> None:
    """Run a kernel: it takes sizes and strides, the inputs, `tensors`, and the number of threads."""
    x, b, c, dt, documents = _rows(inputs.x), _rows(inputs.b), _rows(inputs.c), inputs.dt, inputs.documents
    if documents is not None:
        documents = documents.to(torch.int32).contiguous()
    small = [t if t is None else t.contiguous() for t in (inputs.dt_bias, inputs.a, inputs.skip, inputs.state)]
    sizes = (
        *x.shape, *b.shape[2:], chunk, *x.stride()[:3], *b.stride()[:3], *c.stride()[:3], *dt.stride(), *strides,
    )  # fmt: skip
    run = kernel(f"{name}_{suffix(x.dtype)}", *[POINTER] * (10 + len(tensors)), THREADS)
    read = (x, b, c, dt, *small, documents)
    run((ctypes.c_int64 * len(sizes))(*sizes), *map(pointer, read), *map(pointer, tensors), threads())


def _fp32(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()


def _rows(x: Float[Tensor, "B T H P"]) -> Float[Tensor, "B T H P"]:
    """With the numbers of a head, or group, side by side."""
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()
