"""Fake quantization: a matrix rounded to few bits, as numbers that a matrix product can take.

    x ≈ values · scale        values = code · block scale, exact in BF16 (FP32 under FP32 block scales)

The definition is `numerics.quantize`, bit for bit in every form; this is its hot loop. Schemes that search for a scale
(four over six, least squared error) and the order of operations of checkpoint export have no native form.

Papers: Nemotron-H and Nano 2 (FP8), "Pretraining LLMs with NVFP4", MoR; the products of `values` are exact as in NVFP4,
appendix: emulation by BF16 products with FP32 accumulation.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from seqloom.numerics.quantized import Axis, quantize
from seqloom.numerics.scheme import Scheme
from seqloom.ops.kernels import chosen


class Rounded(NamedTuple):
    """A matrix that few bits can hold: x ≈ values · scale."""

    values: Float[Tensor, "R C"]
    """Elements times block scales."""
    scale: Float32[Tensor, ""]
    """The multiplier of the whole tensor; 1 where the scheme has none."""


def rounded(
    x: Float[Tensor, "R C"],
    scheme: Scheme,
    axis: Axis,
    *,
    amax: Float32[Tensor, ""] | None = None,
    random: int | None = None,
    bits: int = 8,
    signs: tuple[int, ...] | None = None,
) -> Rounded:
    """A matrix under a scheme, without gradients; the arguments are those of `numerics.quantize`."""
    if chosen("quantize", x.device, x.dtype, x, amax) == "native":
        from seqloom.ops.native.quantize import has_native_form, rounded_native

        if has_native_form(scheme):
            return rounded_native(x, scheme, axis, amax, random, bits, signs)
    return rounded_reference(x, scheme, axis, amax, random, bits, signs)


@torch.no_grad()
def rounded_reference(
    x: Float[Tensor, "R C"],
    scheme: Scheme,
    axis: Axis,
    amax: Float32[Tensor, ""] | None = None,
    random: int | None = None,
    bits: int = 8,
    signs: tuple[int, ...] | None = None,
) -> Rounded:
    """By way of the codes."""
    found = quantize(x, scheme, axis, amax=amax, random=random, bits=bits, signs=signs)
    return Rounded(found.values(), found.global_scale)


def relative_errors(
    x: Float[Tensor, "R C"], result: Rounded, rows: int | None = None, columns: int | None = None
) -> tuple[Float32[Tensor, "P"], Int64[Tensor, "P"]]:
    """Of every part of this many rows and columns (None: all), the sum of |x - values · scale| / |x| over its nonzero
    numbers, and how many those are; parts are numbered row by row. A number that is not finite makes its sum NaN.

    Paper: MoR, the error metric; its mean is the sum over the count, also over several ranks.
    """
    if chosen("quantize", x.device, x.dtype, x, *result) == "native" and x.numel():
        from seqloom.ops.native.quantize import relative_errors_native as form
    else:
        form = relative_errors_reference
    return form(x, result, rows or max(1, x.shape[0]), columns or max(1, x.shape[1]))


@torch.no_grad()
def relative_errors_reference(
    x: Float[Tensor, "R C"], result: Rounded, rows: int, columns: int
) -> tuple[Float32[Tensor, "P"], Int64[Tensor, "P"]]:
    """As the formula reads."""
    x = x.float()
    moved = (x - result.values.float() * result.scale).abs() / x.abs()  # BF16 times a scalar would be BF16
    return (
        _parts(torch.where(x != 0, moved, 0.0).double(), rows, columns).float(),
        _parts((x != 0).long(), rows, columns),
    )


def _parts(numbers: Tensor, rows: int, columns: int) -> Tensor:
    """The sums over parts of this many rows and columns."""
    across = [part.sum(1) for part in numbers.split(columns, 1)]
    return torch.stack([torch.stack([part.sum() for part in each.split(rows)]) for each in across], 1).flatten()
