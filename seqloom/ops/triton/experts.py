"""Routed squared-ReLU experts on a GPU: products of whole groups of rows, with no word from the GPU to the host.

Assignments are sorted by expert, and every expert's rows are cut into tiles of their own; a table says which expert and
which rows a tile has. As many tiles are launched as could ever be needed, and those without rows end at once.

    up         a_r = relu(up_e x_r)²                              kept for the backward pass
    down       y_s = Σ_k w_sk (down_e a)_sk                       rows first, then their sum by token
    backward   ∂a = down_e^T ∂y;  ∂w = a·∂a;  ∂h = 2 w relu(h) ∂a with relu(h) = √a;  ∂x = Σ_k up_e^T ∂h
    weights    ∂up_e = ∂h^T x  and  ∂down_e = ∂y^T (w a)          over the rows of one expert, however many

Paper: Nemotron 3 Nano and Super, MoE sections.
"""

from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqloom.ops.triton.tiles import dot, launch, power_of_two, precision


def experts_triton(
    x: Float[Tensor, "S I"],
    indices: Int[Tensor, "S K"],
    weights: Float[Tensor, "S K"],
    up: Float[Tensor, "E F I"],
    down: Float[Tensor, "E I F"],
) -> Float[Tensor, "S I"]:
    """The experts in Triton; arguments and results as in `seqloom.ops.experts.experts`."""
    return _Experts.apply(x, indices, weights, up, down)


class _Dispatch(NamedTuple):
    """Where the A = S K assignments stand once sorted by expert; all in int32."""

    tokens: Int[Tensor, "A"]  # of each sorted row
    slots: Int[Tensor, "S K"]  # the sorted row of each assignment
    begins: Int[Tensor, "E+1"]  # first row of each expert, and the number of rows
    tile_expert: Int[Tensor, "Z"]  # E for a tile without rows
    tile_row: Int[Tensor, "Z"]  # first row of the tile


def _dispatch(indices: Int[Tensor, "S K"], experts: int, height: int) -> tuple[_Dispatch, Int[Tensor, "A"]]:
    """The dispatch for tiles of `height` rows, and the order of the assignments by expert."""
    flat = indices.flatten()
    expert, order = flat.sort(stable=True)
    slots = torch.empty_like(order)
    slots[order] = torch.arange(len(flat), device=flat.device)
    begins = torch.searchsorted(expert, torch.arange(experts + 1, device=flat.device))
    tiles = (begins.diff() + height - 1) // height
    ends = tiles.cumsum(0)
    tile = torch.arange(len(flat) // height + min(experts, len(flat)), device=flat.device)
    tile_expert = torch.searchsorted(ends, tile, right=True)
    known = tile_expert.clamp(max=experts - 1)
    tile_row = begins[known] + (tile - (ends - tiles)[known]) * height
    parts = (order // indices.shape[1], slots.view_as(indices), begins, tile_expert, tile_row)
    return _Dispatch(*(part.int() for part in parts)), order


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, weights: Tensor, up: Tensor, down: Tensor) -> Tensor:
        x, up, down = x.contiguous(), up.contiguous(), down.contiguous()
        plan = _plan(x, indices.numel() // len(up))
        dispatch, order = _dispatch(indices, len(up), plan.height)
        active = _products(x, up, dispatch, plan, "squared_relu", by_token=True)
        rows = _products(active, down, dispatch, plan)
        ctx.save_for_backward(x, weights, up, down, active, order, *dispatch)
        ctx.plan = plan
        return _sum_by_token(rows, dispatch.slots, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, up, down, active, order, *parts = ctx.saved_tensors
        dispatch, plan, dy = _Dispatch(*parts), ctx.plan, dy.contiguous()
        weight = weights.flatten()[order].float()
        shares = torch.empty(-(-active.shape[1] // plan.columns), len(active), device=x.device)
        extra = (active, weight, shares)
        dhidden = _products(dy, down.mT, dispatch, plan, "gradient", extra, by_token=True)
        dweight = shares.sum(0)[dispatch.slots.flatten()].view_as(weights).to(weights.dtype)
        dx = _sum_by_token(_products(dhidden, up.mT, dispatch, plan), dispatch.slots, None)
        dup = _outer_products(dhidden, x, None, dispatch, plan, by_token="right")
        ddown = _outer_products(dy, active, weight, dispatch, plan, by_token="left")
        return dx, None, dweight, dup, ddown


class _Plan(NamedTuple):
    """Sizes of the tile of one program, and what serves it."""

    height: int  # rows
    columns: int
    depth: int  # numbers of the sum that are in flight at a time
    warps: int
    stages: int


def _plan(x: Float[Tensor, "S I"], load: int) -> _Plan:
    """
    Args:
        load: rows of an expert on average.
    """
    if x.dtype == torch.bfloat16:
        height = min(128, power_of_two(load))
        return _Plan(height, 128, 64, 8 if height == 128 else 4, 3)
    return _Plan(min(64, power_of_two(load)), 64, 32, 4, 2)


def _products(
    rows: Tensor,
    matrices: Float[Tensor, "E O C"],
    dispatch: _Dispatch,
    plan: _Plan,
    then: str = "store",
    extra: tuple[Tensor | None, ...] = (None, None, None),
    *,
    by_token: bool = False,
) -> Float[Tensor, "A O"]:
    """Every sorted row times the transpose of its expert's matrix.

    Args:
        then: what is done with the products before they are stored.
        extra: what the gradient needs besides: hidden activations, weights of the rows, and a place for shares of the
            gradients of those.
        by_token: row r of the product is row `tokens[r]` of `rows`.
    """
    experts, outputs, depth = matrices.shape
    result = torch.empty(len(dispatch.tokens), outputs, dtype=rows.dtype, device=rows.device)
    launch(
        _multiply, (len(dispatch.tile_row) * -(-outputs // plan.columns),), rows, matrices, result, *extra,
        dispatch.tokens, dispatch.begins, dispatch.tile_expert, dispatch.tile_row, experts, len(result),
        *matrices.stride(),
        OUTPUTS=outputs, DEPTH=depth, BR=plan.height, BO=plan.columns, BD=plan.depth,
        BY_TOKEN=by_token, THEN=then, PRECISION=precision(rows.dtype), warps=plan.warps, stages=plan.stages,
    )  # fmt: skip
    return result


def _outer_products(
    left: Tensor, right: Tensor, weight: Tensor | None, dispatch: _Dispatch, plan: _Plan, *, by_token: str
) -> Float[Tensor, "E O C"]:
    """Σ over the rows of each expert of left_r (weight_r right_r)^T; one side is looked up by token."""
    outputs, columns, experts = left.shape[1], right.shape[1], len(dispatch.begins) - 1
    result = torch.empty(experts, outputs, columns, dtype=left.dtype, device=left.device)
    side = 128 if left.dtype == torch.bfloat16 else 64
    launch(
        _accumulate, (-(-outputs // side) * -(-columns // side), experts), left, right, weight, result,
        dispatch.tokens, dispatch.begins,
        OUTPUTS=outputs, COLUMNS=columns, BO=side, BC=side, BR=plan.depth,
        LEFT_BY_TOKEN=by_token == "left", WEIGHTED=weight is not None, PRECISION=precision(left.dtype),
        warps=8 if side == 128 else 4, stages=plan.stages,
    )  # fmt: skip
    return result


def _sum_by_token(
    rows: Float[Tensor, "A I"], slots: Int[Tensor, "S K"], weights: Float[Tensor, "S K"] | None
) -> Float[Tensor, "S I"]:
    """Σ_k weight_sk rows[slot_sk], summed in FP32."""
    count, width = len(slots), rows.shape[1]
    weights = None if weights is None else weights.contiguous()
    result = torch.empty(count, width, dtype=rows.dtype, device=rows.device)
    block = min(1024, power_of_two(width))
    launch(
        _gather, (count, -(-width // block)), rows, slots, weights, result, width,
        K=slots.shape[1], BLOCK=block, WEIGHTED=weights is not None, warps=4,
    )  # fmt: skip
    return result


@triton.jit
@no_type_check
def _multiply(
    rows, matrices, result, active, weight, shares, tokens, begins, tile_expert, tile_row, experts, count,
    matrix_expert, matrix_output, matrix_depth,
    OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, BR: tl.constexpr, BO: tl.constexpr, BD: tl.constexpr,
    BY_TOKEN: tl.constexpr, THEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(OUTPUTS, BO)  # neighbours share rows, and an expert's matrix stays in the cache over its tiles
    tile, part = tl.program_id(0) // across, tl.program_id(0) % across
    expert = tl.load(tile_expert + tile)
    if expert < experts:
        row = tl.load(tile_row + tile) + tl.arange(0, BR)
        in_rows = row < tl.load(begins + expert + 1)
        source = row.to(tl.int64)
        if BY_TOKEN:
            source = tl.load(tokens + row, mask=in_rows, other=0).to(tl.int64)
        output, depth = part * BO + tl.arange(0, BO), tl.arange(0, BD)
        in_outputs = output < OUTPUTS
        lefts = rows + source[:, None] * DEPTH + depth[None, :]
        matrix = matrices + expert.to(tl.int64) * matrix_expert
        rights = matrix + depth[:, None] * matrix_depth + output[None, :] * matrix_output
        total = tl.zeros([BR, BO], tl.float32)
        for first in range(0, DEPTH, BD):
            in_depth = depth < DEPTH - first
            left = tl.load(lefts + first, mask=in_rows[:, None] & in_depth[None, :], other=0.0)
            right = tl.load(rights + first * matrix_depth, mask=in_depth[:, None] & in_outputs[None, :], other=0.0)
            total += dot(left, right, PRECISION)
        place = row.to(tl.int64)[:, None] * OUTPUTS + output[None, :]
        there = in_rows[:, None] & in_outputs[None, :]
        if THEN == "squared_relu":
            total = tl.maximum(total, 0.0)
            total *= total
        if THEN == "gradient":
            squared = tl.load(active + place, mask=there, other=0.0).to(tl.float32)
            tl.store(shares + part.to(tl.int64) * count + row, tl.sum(total * squared, 1), mask=in_rows)
            factor = 2 * tl.load(weight + row, mask=in_rows, other=0.0)
            total *= factor[:, None] * tl.sqrt(squared)
        tl.store(result + place, total.to(result.dtype.element_ty), mask=there)


@triton.jit
@no_type_check
def _accumulate(
    left, right, weight, result, tokens, begins,
    OUTPUTS: tl.constexpr, COLUMNS: tl.constexpr, BO: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
    LEFT_BY_TOKEN: tl.constexpr, WEIGHTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(COLUMNS, BC)
    output = (tl.program_id(0) // across) * BO + tl.arange(0, BO)
    column = (tl.program_id(0) % across) * BC + tl.arange(0, BC)
    expert = tl.program_id(1)
    end = tl.load(begins + expert + 1)
    total = tl.zeros([BO, BC], tl.float32)
    for first in range(tl.load(begins + expert), end, BR):
        row = first + tl.arange(0, BR)
        in_rows = row < end
        token = tl.load(tokens + row, mask=in_rows, other=0).to(tl.int64)
        if LEFT_BY_TOKEN:
            from_left, from_right = token, row.to(tl.int64)
        else:
            from_left, from_right = row.to(tl.int64), token
        in_left = in_rows[:, None] & (output < OUTPUTS)[None, :]
        in_right = in_rows[:, None] & (column < COLUMNS)[None, :]
        ls = tl.load(left + from_left[:, None] * OUTPUTS + output[None, :], mask=in_left, other=0.0)
        rs = tl.load(right + from_right[:, None] * COLUMNS + column[None, :], mask=in_right, other=0.0)
        if WEIGHTED:
            rs = (rs * tl.load(weight + row, mask=in_rows, other=0.0)[:, None]).to(ls.dtype)
        total += dot(tl.trans(ls), rs, PRECISION)
    place = (expert.to(tl.int64) * OUTPUTS + output[:, None]) * COLUMNS + column[None, :]
    there = (output < OUTPUTS)[:, None] & (column < COLUMNS)[None, :]
    tl.store(result + place, total.to(result.dtype.element_ty), mask=there)


@triton.jit
@no_type_check
def _gather(rows, slots, weights, result, width, K: tl.constexpr, BLOCK: tl.constexpr, WEIGHTED: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for k in range(K):
        row = tl.load(slots + token * K + k).to(tl.int64)
        value = tl.load(rows + row * width + column, mask=column < width, other=0.0).to(tl.float32)
        if WEIGHTED:
            value *= tl.load(weights + token * K + k).to(tl.float32)
        total += value
    tl.store(result + token * width + column, total.to(result.dtype.element_ty), mask=column < width)
