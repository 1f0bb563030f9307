"""RMS norms in C++; kept for the backward pass are the inputs and one number for each row or group."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqloom.ops.native.call import NUMBER, POINTER, SIZE, THREADS, kernel, pointer, suffix, threads

_RMS_FORWARD = (POINTER, SIZE, POINTER, NUMBER, POINTER, POINTER, SIZE, SIZE, THREADS)
_RMS_BACKWARD = (POINTER, SIZE, POINTER, POINTER, POINTER, SIZE, POINTER, POINTER, SIZE, SIZE, THREADS)
_GATED = (POINTER, SIZE, POINTER, SIZE, POINTER)
_GATED_FORWARD = (*_GATED, NUMBER, POINTER, POINTER, SIZE, SIZE, SIZE, THREADS)
_GATED_BACKWARD = (*_GATED, POINTER, POINTER, SIZE, POINTER, POINTER, POINTER, SIZE, SIZE, SIZE, THREADS)


def rms_norm_native(x: Float[Tensor, "*B D"], weight: Float[Tensor, "D"], eps: float) -> Float[Tensor, "*B D"]:
    return _RmsNorm.apply(x, weight, eps) if torch.is_grad_enabled() else _normed(x, weight, eps)[0]


def _normed(x: Float[Tensor, "*B D"], weight: Float[Tensor, "D"], eps: float) -> tuple[Tensor, Tensor]:
    """The result, and of every row the number that it was multiplied by."""
    rows, gain = _rows(x), weight.float().contiguous()
    y = torch.empty(x.shape, dtype=x.dtype)
    inverse = torch.empty(rows.shape[0], dtype=torch.float32)
    kernel(f"rms_norm_forward_{suffix(x.dtype)}", *_RMS_FORWARD)(
        pointer(rows), rows.stride(0), pointer(gain), eps, pointer(y), pointer(inverse), *rows.shape, threads()
    )
    return y, inverse


def gated_group_norm_native(
    y: Float[Tensor, "B T D"], z: Float[Tensor, "B T D"], weight: Float[Tensor, "D"], groups: int, eps: float
) -> Float[Tensor, "B T D"]:
    return _GatedGroupNorm.apply(y if y.dtype == z.dtype else y.float(), z, weight, groups, eps)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, inverse = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        rows, drows, gain = _rows(x), _rows(dy), weight.float().contiguous()
        dx = torch.empty(x.shape, dtype=x.dtype)
        dweight = torch.empty(weight.shape, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        kernel(f"rms_norm_backward_{suffix(x.dtype)}", *_RMS_BACKWARD)(
            pointer(rows), rows.stride(0), pointer(gain), pointer(inverse), pointer(drows), drows.stride(0),
            pointer(dx), pointer(dweight), *rows.shape, threads(),
        )  # fmt: skip
        return dx, None if dweight is None else dweight.to(weight.dtype), None


class _GatedGroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
        values, gates, gain = _rows(y), _rows(z), weight.float().contiguous()
        out = torch.empty(z.shape, dtype=z.dtype)
        inverse = torch.empty(len(gates), groups, dtype=torch.float32)
        kernel(f"gated_norm_forward_{_suffix(y, z)}", *_GATED_FORWARD)(
            pointer(values), values.stride(0), pointer(gates), gates.stride(0), pointer(gain), eps, pointer(out),
            pointer(inverse), *_sizes(gates, groups), threads(),
        )  # fmt: skip
        ctx.save_for_backward(y, z, weight, inverse)
        ctx.groups = groups
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        y, z, weight, inverse = ctx.saved_tensors
        values, gates, drows, gain = _rows(y), _rows(z), _rows(dout), weight.float().contiguous()
        dy, dz = (torch.empty(t.shape, dtype=t.dtype) for t in (y, z))
        dweight = torch.empty(weight.shape, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        kernel(f"gated_norm_backward_{_suffix(y, z)}", *_GATED_BACKWARD)(
            pointer(values), values.stride(0), pointer(gates), gates.stride(0), pointer(gain), pointer(inverse),
            pointer(drows), drows.stride(0), pointer(dy), pointer(dz), pointer(dweight), *_sizes(gates, ctx.groups),
            threads(),
        )  # fmt: skip
        return dy, dz, None if dweight is None else dweight.to(weight.dtype), None, None


def _rows(x: Float[Tensor, "*B D"]) -> Float[Tensor, "S D"]:
    """All rows one after the other, each in one piece, though perhaps apart."""
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.new_empty(0, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _sizes(rows: Float[Tensor, "S D"], groups: int) -> tuple[int, int, int]:
    """Rows, groups, and the width of a group."""
    assert rows.shape[1] % groups == 0, f"{rows.shape[1]} channels cannot be split into {groups} groups"
    return len(rows), groups, rows.shape[1] // groups


def _suffix(y: Tensor, z: Tensor) -> str:
    return f"{suffix(y.dtype)}_{suffix(z.dtype)}"
