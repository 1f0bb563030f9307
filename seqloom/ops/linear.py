"""The linear product y = x W^T with its two gradient products, whatever formats x and W are stored in.

    y = x W^T        ∂x = ∂y W        ∂W = ∂y^T x

W is cast to the format of x. Products of BF16 are summed in FP32 and rounded once. Most CPUs have no units for BF16,
and there torch's own products of it are ten to a hundred times slower than those of FP32: operands are widened instead.

The native form multiplies few rows by reading W once, at the speed of memory, and many in blocks that stay in the
cache. It leaves to torch what that is faster at: FP32 on some processors and in small trained products, and BF16 where
the CPU has units for it. Where invariance is asked for, the first way serves any number of rows, and the portable form
multiplies one row after the other.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from seqloom.ops.kernels import chosen, is_invariant

Product = Callable[[Tensor, Tensor, torch.dtype], Tensor]
"""a b for a matrix b, in this dtype; a may have axes before its last two."""

_WORTH_A_FUNCTION = 2**23
"""Multiplications of FP32 below which what is gained is less than what a differentiable function in Python costs."""


def linear(x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "*B O"]:
    """x W^T in the dtype of `x`, with the implementation chosen for this device and dtype.

    The gradient of `weight` is rounded to the dtype in which it is stored. A frozen weight is never kept in a second
    format for the backward pass.
    """
    implementation = chosen("linear", x.device, x.dtype, x, weight)
    if implementation == "reference":
        return linear_reference(x, weight)
    return linear_native(x, weight) if implementation == "native" else linear_torch(x, weight)


def linear_reference(x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "*B O"]:
    """As the formula reads."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.einsum("...i,oi->...o", x.to(wide), weight.to(x.dtype).to(wide)).to(x.dtype)


def linear_torch(x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "*B O"]:
    if is_invariant():
        wide = torch.promote_types(x.dtype, torch.float32)
        return row_by_row(x.to(wide), weight.to(x.dtype).to(wide)).to(x.dtype)
    if _widened_by_torch(x, weight):
        return _Linear.apply(x, weight, _widened)
    if weight.requires_grad or weight.dtype == x.dtype:
        return F.linear(x, weight.to(x.dtype))
    return _Linear.apply(x, weight, _cast)


def linear_native(x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "*B O"]:
    from seqloom.ops.native.matvec import MOST_ROWS, matvec

    learning = _learning(x, weight)
    if not learning and (is_invariant() or x.numel() <= MOST_ROWS * x.shape[-1]):
        return matvec(x, weight)
    small = learning and x.dtype == torch.float32 and x.numel() * len(weight) < _WORTH_A_FUNCTION
    if small or not _native_is_faster(x.dtype):
        return linear_torch(x, weight)
    return linear_in_blocks(x, weight)


def linear_in_blocks(x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "*B O"]:
    """The native form for many rows. The result of a row, to the last bit, depends on no other row."""
    if _learning(x, weight):
        return _Linear.apply(x, weight, _native)
    return _native(x, _like(weight, x.dtype).mT, x.dtype)


def row_by_row(x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "*B O"]:
    """x W^T in a form in which no row sees another: libraries choose the order of sums by the number of rows."""
    rows = [(weight * row).sum(-1) for row in _rows(x)]
    return torch.stack(rows).view(*x.shape[:-1], len(weight)) if rows else x.new_empty(*x.shape[:-1], len(weight))


def product(a: Float[Tensor, "M K"], b: Float[Tensor, "K N"], dtype: torch.dtype) -> Float[Tensor, "M N"]:
    """a b without gradients, rounded once to `dtype`, for ops that have matrix products inside."""
    if chosen("linear", a.device, a.dtype, a, b) == "native" and _native_is_faster(a.dtype):
        return _native(a, b, dtype)
    return (_widened if _widened_by_torch(a, b) else _cast)(a, b, dtype)


def add_product(total: Float[Tensor, "M N"], a: Float[Tensor, "M K"], b: Float[Tensor, "K N"]) -> None:
    """total += a b without gradients; the total is FP32 or wider and its rows are contiguous."""
    if chosen("linear", a.device, a.dtype, total, a, b) == "native" and _native_is_faster(a.dtype):
        from seqloom.ops.native.linear import add_product_native

        add_product_native(total, a, b)
    elif total.dtype == a.dtype == b.dtype:
        total.addmm_(a, b)
    else:
        total += product(a, b, total.dtype)


class _Linear(torch.autograd.Function):
    """The three products in one way of multiplying."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, product: Product) -> Tensor:
        want_dx, want_dweight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if want_dweight else None, weight if want_dx else None)
        ctx.formats, ctx.product = (x.dtype, weight.dtype), product
        return product(x, _like(weight, x.dtype).mT, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        x_format, weight_format = ctx.formats
        dx = None if weight is None else ctx.product(dy, _like(weight, dy.dtype), x_format)
        dweight = None if x is None else ctx.product(_rows(dy).mT, _rows(x), weight_format)
        return dx, dweight, None


def _learning(x: Tensor, weight: Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


def _like(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight with the numbers it has in another format. Widening changes none, so products do that themselves."""
    return weight if torch.promote_types(weight.dtype, dtype) == dtype else weight.to(dtype)


def _rows(x: Float[Tensor, "*B I"]) -> Float[Tensor, "S I"]:
    return x.reshape(-1, x.shape[-1])


def _cast(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    return (a @ b.to(a.dtype)).to(dtype)


def _widened(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    return (a.float() @ b.float()).to(dtype)


def _native(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    from seqloom.ops.native.linear import product_native

    return product_native(_rows(a) if a.dim() != 2 else a, b, dtype).view(*a.shape[:-1], b.shape[1])


def _widened_by_torch(*tensors: Tensor) -> bool:
    """Whether torch would multiply BF16 without units for it, in plain memory of the CPU."""
    if tensors[0].dtype != torch.bfloat16 or bf16_units():
        return False
    return all(tensor.is_cpu and type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors)


@lru_cache
def _native_is_faster(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16 and bf16_units():
        return False
    from seqloom.ops.native.linear import torch_is_faster

    return not torch_is_faster()


@lru_cache
def bf16_units() -> bool:
    """Whether torch multiplies BF16 in units that this CPU has for it."""
    import platform

    if platform.machine().lower() in ("arm64", "aarch64"):
        return platform.system() == "Linux" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
