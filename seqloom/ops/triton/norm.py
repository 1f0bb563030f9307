"""RMSNorm, and RMSNorm by groups after a SiLU gate, on a GPU: each row is read once and written once.

    y = w ∘ g / sqrt(mean(g²) + eps)     with g = x, or g = x ∘ SiLU(z) and a mean per group

A program owns rows of one group (RMSNorm is one group without a gate). The backward kernel keeps only the inputs,
computes the statistic anew, and sums ∂w over the rows of its program; torch adds the programs' sums, always in order.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqloom.ops.triton.tiles import launch, power_of_two

_PROGRAMS = 512
"""Programs that the rows of one group are divided among in the backward pass."""


def rms_norm_triton(x: Float[Tensor, "*B D"], weight: Float[Tensor, "D"], eps: float) -> Float[Tensor, "*B D"]:
    """w ∘ x / sqrt(mean(x²) + eps), in FP32 inside, in the dtype of x outside."""
    return _Norm.apply(x, None, weight, 1, eps)


def gated_group_norm_triton(
    y: Float[Tensor, "B T D"], z: Float[Tensor, "B T D"], weight: Float[Tensor, "D"], groups: int, eps: float
) -> Float[Tensor, "B T D"]:
    """RMSNorm of y ∘ SiLU(z) over each of `groups` runs of channels, in the dtype of z."""
    return _Norm.apply(y, z, weight, groups, eps)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor | None, weight: Tensor, groups: int, eps: float) -> Tensor:
        ctx.save_for_backward(x, z, weight)
        ctx.groups, ctx.eps = groups, eps
        inputs = _rows(x), None if z is None else _rows(z)
        y = torch.empty(x.shape, dtype=x.dtype if z is None else z.dtype, device=x.device)
        width = x.shape[-1] // groups
        launch(
            _forward, (x.numel() // x.shape[-1], groups), *inputs, weight, y, *_strides(*inputs), x.shape[-1], eps,
            WIDTH=width, BLOCK=power_of_two(width), GATED=z is not None, warps=_warps(width),
        )  # fmt: skip
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, z, weight = ctx.saved_tensors
        inputs = _rows(x), None if z is None else _rows(z)
        dx, dz = (None if t is None else torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, z))
        width, rows = x.shape[-1] // ctx.groups, x.numel() // x.shape[-1]
        each = max(1, -(-rows // _PROGRAMS))
        programs = -(-rows // each)
        dweight = torch.empty(programs, x.shape[-1], device=x.device)
        dy = _rows(dy)
        launch(
            _backward, (programs, ctx.groups), *inputs, weight, dy, dx, dz, dweight, *_strides(*inputs), dy.stride(0),
            rows, each, x.shape[-1], ctx.eps,
            WIDTH=width, BLOCK=power_of_two(width), GATED=z is not None, warps=_warps(width),
        )  # fmt: skip
        return dx, dz, dweight.sum(0).to(weight.dtype), None, None


def _rows(x: Float[Tensor, "*B D"]) -> Float[Tensor, "S D"]:
    """The rows, each of them dense; a view where that is possible."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _strides(x: Tensor, z: Tensor | None) -> tuple[int, int]:
    return x.stride(0), 0 if z is None else z.stride(0)


def _warps(width: int) -> int:
    return min(16, max(1, triton.next_power_of_2(width) // 512))


@triton.jit
@no_type_check
def _forward(
    x, z, weight, y, x_row, z_row, D, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, BLOCK)
    there = tl.arange(0, BLOCK) < WIDTH
    value = tl.load(x + row * x_row + column, mask=there, other=0.0).to(tl.float32)
    if GATED:
        gate = tl.load(z + row * z_row + column, mask=there, other=0.0).to(tl.float32)
        value *= gate / (1 + tl.exp(-gate))
    scale = 1 / tl.sqrt_rn(tl.sum(value * value, 0) / WIDTH + eps)
    w = tl.load(weight + column, mask=there, other=0.0).to(tl.float32)
    tl.store(y + row * D + column, (value * scale * w).to(y.dtype.element_ty), mask=there)


@triton.jit
@no_type_check
def _backward(
    x, z, weight, dy, dx, dz, dweight, x_row, z_row, dy_row, rows, each, D, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(1) * WIDTH + tl.arange(0, BLOCK)
    there = tl.arange(0, BLOCK) < WIDTH
    w = tl.load(weight + column, mask=there, other=0.0).to(tl.float32)
    dw = tl.zeros([BLOCK], tl.float32)
    first = tl.program_id(0).to(tl.int64) * each
    for row in range(first, tl.minimum(first + each, rows)):
        value = tl.load(x + row * x_row + column, mask=there, other=0.0).to(tl.float32)
        dout = tl.load(dy + row * dy_row + column, mask=there, other=0.0).to(tl.float32)
        gated = value
        if GATED:
            gate = tl.load(z + row * z_row + column, mask=there, other=0.0).to(tl.float32)
            open_by = 1 / (1 + tl.exp(-gate))
            gated = value * gate * open_by
        scale = 1 / tl.sqrt_rn(tl.sum(gated * gated, 0) / WIDTH + eps)
        normed = gated * scale
        dw += dout * normed
        dnormed = dout * w
        dgated = scale * (dnormed - normed * (tl.sum(dnormed * normed, 0) / WIDTH))
        if GATED:
            dgate = dgated * value * open_by * (1 + gate * (1 - open_by))
            tl.store(dz + row * D + column, dgate.to(dz.dtype.element_ty), mask=there)
            dgated *= gate * open_by
        tl.store(dx + row * D + column, dgated.to(dx.dtype.element_ty), mask=there)
    tl.store(dweight + tl.program_id(0).to(tl.int64) * D + column, dw, mask=there)
