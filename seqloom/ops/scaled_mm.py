"""Products of few bits in the units that a device has for them, through torch's scaled products, from the codes of
`numerics`.

    a b^T = (codes_a codes_b^T) · scale_a · scale_b        scales of tensors or rows after the sum, of blocks within it

    tensor, row, block    FP8 under FP32 scales, blocks of 128 (Hopper)
    mxfp8, nvfp4          FP8 and FP4 under stored scales of 32 and 16 numbers, which lie in tiles (Blackwell)

The codes are those of the emulation, which the result so differs from only in the order and width of sums. A kind of
product is used on a device if a small one of it comes out as expected; the forward pass may sum fast, as in the
published recipes, the backward passes may not. On a CPU emulation is the faster one, and "auto" leaves it at that.
Both operands lie with the sum as their last axis, filled up with zeros to what the units want.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from seqloom.core.errors import ConfigError
from seqloom.numerics.packing import pack, swizzle
from seqloom.numerics.precision import PrecisionConfig
from seqloom.numerics.quantized import Quantized, quantize
from seqloom.numerics.recipes import Operand
from seqloom.numerics.scheme import (
    FP8_1X128,
    FP8_128X128,
    FP8_ROW,
    FP8_TENSOR,
    MXFP8,
    NVFP4,
    NVFP4_2D,
    Scheme,
)

FP8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
_PROBES: dict[str, tuple[Scheme, Scheme]] = {
    "tensor": (FP8_TENSOR, FP8_TENSOR),
    "row": (FP8_ROW, FP8_ROW),
    "block": (FP8_1X128, FP8_128X128),
    "mxfp8": (MXFP8, MXFP8),
    "nvfp4": (NVFP4, NVFP4_2D),
}
_FAST, _EXACT = 2.0**-9, 2.0**-11
"""Largest error of a sum as a share of the sum of its terms' magnitudes, with fast accumulation and without."""


def kind_of(scheme: Scheme | None) -> str | None:
    """Which kind of product an operand may enter; None where no unit takes it."""
    if scheme is None:
        return None
    if scheme.scale == "nvfp4":
        return "nvfp4"
    if scheme.element in FP8 and scheme.scale in ("e8m0_ceil", "e8m0_floor"):
        return "mxfp8"
    if scheme.element not in FP8 or scheme.scale not in ("fp32", "power_of_two"):
        return None
    sides = {(None, None): "tensor", (None, 1): "row", (128, 1): "block", (128, 128): "block"}
    return sides.get((scheme.along, scheme.across))


def real(operand: Operand, device: torch.device, hardware: str) -> bool:
    """Whether the units of a device multiply an operand, under `precision.hardware`."""
    if hardware == "emulate" or (hardware == "auto" and device.type == "cpu"):
        return False
    kind = kind_of(operand.scheme)
    return kind is not None and runs(kind, device.type)


def refuse_emulation(device: torch.device, precision: PrecisionConfig) -> None:
    """
    Raises:
        ConfigError: a format of the recipe has no units on the device; it is named.
    """
    for format in sorted(precision.formats()):
        products = precision.products(format)  # type: ignore[arg-type]
        assert products is not None
        operands = (*products.forward, *products.input_gradient, *products.weight_gradient)
        if not all(real(operand, device, "require") for operand in operands):
            raise ConfigError(
                f"precision.hardware = 'require': {device.type} cannot multiply in '{format}' here; 'auto' and "
                "'emulate' train with the same numbers up to the order of sums"
            )


@lru_cache
def runs(kind: str, device_type: str) -> bool:
    """Whether a device gives the expected result for a kind of product."""
    device, (left, right) = torch.device(device_type), _PROBES[kind]
    source = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=source).to(device) for _ in range(2))
    x, w = quantize(a, left, 1), quantize(b, right, 1)
    try:
        found = scaled_mm(*_parts(x), *_parts(w), torch.float32 if kind != "block" else torch.bfloat16, fast=True)
    except (RuntimeError, ValueError, NotImplementedError, AttributeError):
        return False
    one, other = x.dequantize().double(), w.dequantize().double()
    allowed = _FAST * (one.abs() @ other.abs().mT) + 2.0**-8 * (one @ other.mT).abs()
    return bool(((found.double() - one @ other.mT).abs() <= allowed).all())


def codes(x: Float[Tensor, "R C"], scheme: Scheme, axis: Any, **how: Any) -> tuple[Tensor, Tensor, Tensor]:
    """An operand as FP8 numbers or codes of FP4, its scale, and its block scales, all of them multipliers that decode.

    Args:
        how: what else `quantize` is to be told.
    """
    form = _compiled() if x.is_cuda and how.get("random") is None else quantize  # a key is new in every step
    return _parts(form(x, scheme, axis, **how))


def scaled_mm(
    a: Shaped[Tensor, "M K"],
    scale_a: Float32[Tensor, ""],
    blocks_a: Shaped[Tensor, "m k"],
    b: Shaped[Tensor, "N K"],
    scale_b: Float32[Tensor, ""],
    blocks_b: Shaped[Tensor, "n l"],
    dtype: torch.dtype,
    fast: bool,
) -> Float[Tensor, "M N"]:
    """a b^T of what `codes` gives.

    Args:
        blocks_a, blocks_b: of one entry where the scale of the tensor says all.
        fast: sums may be of fewer bits.
    """
    (rows, inner), columns = a.shape, len(b)
    if blocks_a.dtype != torch.float32:
        return _of_stored_scales(a, scale_a, blocks_a, b, scale_b, blocks_b, dtype)
    if blocks_a.numel() == blocks_b.numel() == 1:
        one, other = scale_a * blocks_a.view(()), scale_b * blocks_b.view(())
        multiple = 16
    elif blocks_a.shape == (rows, 1) and blocks_b.shape == (columns, 1):
        one = F.pad(scale_a * blocks_a, (0, 0, 0, -rows % 16), value=1.0).contiguous()
        other = F.pad(scale_b * blocks_b, (0, 0, 0, -columns % 16), value=1.0).mT.contiguous()
        multiple = 16
    else:
        one = _column_major(F.pad(scale_a * blocks_a, (0, 0, 0, -rows % 16), value=1.0))
        fine = blocks_b.shape[0] == columns
        other = F.pad(scale_b * blocks_b, (0, 0, 0, -columns % 16 if fine else 0), value=1.0).mT
        other = other.contiguous() if fine else _column_major(other)
        multiple = 128
    a = F.pad(a.view(torch.uint8), (0, -inner % multiple, 0, -rows % 16)).contiguous().view(a.dtype)
    b = F.pad(b.view(torch.uint8), (0, -inner % multiple, 0, -columns % 16)).contiguous().view(b.dtype)
    wide = torch.bfloat16 if multiple == 128 else dtype  # all that blocks are summed to
    y = torch._scaled_mm(a, b.mT, one, other, out_dtype=wide, use_fast_accum=fast and multiple == 16)
    return y[:rows, :columns].to(dtype)


def _of_stored_scales(
    a: Shaped[Tensor, "M K"],
    scale_a: Float32[Tensor, ""],
    blocks_a: Shaped[Tensor, "m k"],
    b: Shaped[Tensor, "N K"],
    scale_b: Float32[Tensor, ""],
    blocks_b: Shaped[Tensor, "n k"],
    dtype: torch.dtype,
) -> Float[Tensor, "M N"]:
    """NVFP4 under E4M3 scales and the scales of both tensors, MXFP8 under E8M0 scales."""
    kinds, orders = F.ScalingType, F.SwizzleType
    recipe, order = [kinds.BlockWise1x32], [orders.SWIZZLE_32_4_4]
    (left, one), (right, other) = _tiled(a, blocks_a), _tiled(b, blocks_b)
    scales, others = [one], [other]
    if blocks_a.dtype == torch.float8_e4m3fn:
        recipe, order = [kinds.BlockWise1x16, kinds.TensorWise], [orders.SWIZZLE_32_4_4, orders.NO_SWIZZLE]
        scales, others = [one, scale_a], [other, scale_b]
    y = F.scaled_mm(left, right.mT, scales, recipe, others, recipe, order, order, output_dtype=dtype)
    if len(recipe) == 1:
        y = y * (scale_a * scale_b)  # 1, or NaN where an operand was not finite
    return y[: len(a), : len(b)]


def _tiled(a: Shaped[Tensor, "M K"], blocks: Shaped[Tensor, "m k"]) -> tuple[Tensor, Tensor]:
    """Numbers and scales as the units want them: whole tiles, two FP4 codes a byte, a scale for each row."""
    fp4 = a.dtype == torch.uint8
    if len(blocks) < len(a):  # square blocks
        blocks = blocks.view(torch.uint8).repeat_interleave(16 if fp4 else 32, 0)[: len(a)]
    padded = F.pad(a.view(torch.uint8), (0, -a.shape[1] % 32, 0, -len(a) % 16)).contiguous()
    scales = swizzle(F.pad(blocks.view(torch.uint8), (0, 0, 0, -len(a) % 16)))
    if fp4:
        return pack(padded).view(torch.float4_e2m1fn_x2), scales.view(torch.float8_e4m3fn)
    return padded.view(a.dtype), scales.view(torch.float8_e8m0fnu)


def _column_major(scales: Float32[Tensor, "k n"]) -> Float32[Tensor, "k n"]:
    """The same with a stride of 1 along the first axis, whose stretch in memory is a multiple of four."""
    count = len(scales)
    return F.pad(scales, (0, 0, 0, -count % 4)).mT.contiguous().mT[:count]


def _parts(found: Quantized) -> tuple[Tensor, Tensor, Tensor]:
    dtype, blocks = FP8.get(found.scheme.element, torch.uint8), found.block_scale
    if found.block_codes is not None:
        stored = torch.float8_e4m3fn if found.scheme.scale == "nvfp4" else torch.float8_e8m0fnu
        blocks = found.block_codes.view(stored)
    return found.codes.view(dtype), found.global_scale, blocks


@lru_cache
def _compiled() -> Any:
    """Quantization as one or two kernels of a GPU instead of thirty."""
    return torch.compile(quantize, dynamic=True)
