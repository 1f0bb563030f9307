"""The scale computations: from tiles of a matrix to values on the scale of the element format.

    encode = largest / amax (FP8),   x · encode
    S = e4m3(amax_block / 6 · 2688 / amax),   x / (S · amax / 2688)   (NVFP4; training multiplies by a reciprocal)
    2^e, e = ⌈log2(amax / largest)⌉ or ⌊log2 amax⌋ - ⌊log2 largest⌋   (MX)
    m_tensor · 2^e under largest / amax_block   (GAM: one mantissa per tensor)

Tiles have the axes a s b t: s rows and t columns of the block in block row a and block column b; scales are a 1 b 1.
Papers: as in `numerics.quantized`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from seqloom.numerics.elements import (
    E2M1,
    E4M3,
    Element,
    decode,
    e8m0_ceil,
    e8m0_floor,
    e8m0_value,
    encode,
    power_of_two,
    round_nearest,
)
from seqloom.numerics.scheme import Scheme

FP32_LARGEST = torch.finfo(torch.float32).max
CHUNK = 1 << 16
"""Elements whose candidate scales are tried at once, which keeps the search in cache."""


class Scaled(NamedTuple):
    values: Float32[Tensor, "a s b t"]
    """x · encode scale, to be rounded."""
    block: Float32[Tensor, "a 1 b 1"]
    """Multipliers that decode."""
    codes: UInt8[Tensor, "a 1 b 1"] | None
    """Their stored bytes."""
    tensor: Float32[Tensor, ""]
    """The tensor's multiplier that decodes."""


def scaled(tiles: Float32[Tensor, "a s b t"], scheme: Scheme, element: Element, amax: Float32[Tensor, ""]) -> Scaled:
    """Tiles on the scale of the element format, and the scales that lead back."""
    largest = amax_of(tiles, (1, 3))
    match scheme.scale:
        case "fp32" | "power_of_two":
            multiplier = _encode_scale(amax if scheme.per_tensor else largest, element)
            if scheme.scale == "power_of_two":
                multiplier = power_of_two(multiplier)
            if scheme.per_tensor:
                return Scaled(tiles * multiplier, torch.ones_like(largest), None, 1 / multiplier)
            return Scaled(tiles * multiplier, 1 / multiplier, None, torch.ones_like(amax))
        case "e8m0_ceil" | "e8m0_floor":
            ceil = scheme.scale == "e8m0_ceil"
            codes = e8m0_ceil(largest, element.largest) if ceil else e8m0_floor(largest, element)
            block = e8m0_value(codes)
            return Scaled(tiles * (1 / block), block, codes, torch.ones_like(amax))
        case "gam":
            return _gam(tiles, largest, element, amax)
        case "nvfp4":
            return _nvfp4(tiles, largest, amax)
        case "nvfp4_ptq":
            tensor = amax / 2688
            return _exported(tiles, _e4m3(_ideal(largest, tensor)), tensor)
        case "four_over_six":
            # The scale is built for 256 instead of 448, so that one 1.5 times as large, under which the largest
            # element becomes 4, still is an E4M3 number.
            tensor = amax / 1536
            ideal = _ideal(largest, tensor)
            return _exported(
                tiles, _least_error(tiles, torch.stack((_e4m3(ideal), _e4m3(ideal * 1.5))), tensor), tensor
            )
        case "nvfp4_mse":
            tensor = amax / 2688
            every = decode(torch.arange(1, E4M3.largest_code + 1, dtype=torch.uint8, device=tiles.device), E4M3)
            candidates = every.view(-1, 1, 1, 1, 1).expand(-1, *largest.shape)
            return _exported(tiles, _least_error(tiles, candidates, tensor), tensor)


def amax_of(x: Tensor, dims: tuple[int, ...] | None = None) -> Float32[Tensor, "..."]:
    """The largest magnitude, of the whole tensor or over axes that are kept with size 1. NaN counts as 0, and so does
    a tensor without elements."""
    magnitude = x.abs().nan_to_num_(nan=0.0, posinf=torch.inf)
    if dims is not None:
        return magnitude.amax(dims, keepdim=True).float()
    return magnitude.amax().float() if x.numel() else x.new_zeros((), dtype=torch.float32)


def _over(number: float, tensor: Tensor) -> Tensor:
    """The correctly rounded quotient number / tensor."""
    return torch.full_like(tensor, number) / tensor


def _encode_scale(amax: Tensor, element: Element) -> Tensor:
    """largest / amax, 1 where that has no meaning."""
    scale = _over(element.largest, amax).clamp(max=FP32_LARGEST)
    return torch.where((amax == 0) | ~amax.isfinite(), 1.0, scale)


def _gam(tiles: Tensor, largest: Tensor, element: Element, amax: Tensor) -> Scaled:
    """Every block takes the tensor's mantissa and its own exponent, one less where the mantissa would saturate it."""
    group = _encode_scale(amax, element)
    mantissa = group / power_of_two(group)
    block = _encode_scale(largest, element)
    exponent = power_of_two(block)
    exponent = torch.where(mantissa > block / exponent, exponent / 2, exponent)
    exponent = torch.where((largest == 0) | ~largest.isfinite(), power_of_two(group), exponent)
    inverse = 1 / exponent
    return Scaled(tiles * (mantissa * exponent), inverse, e8m0_ceil(inverse, 1.0), 1 / mantissa)


def _nvfp4(tiles: Tensor, largest: Tensor, amax: Tensor) -> Scaled:
    """The order of operations of training kernels."""
    encode_scale = _over(2688.0, amax).clamp(max=FP32_LARGEST)
    encode_scale = torch.where((amax == 0) | (encode_scale == 0), 1.0, encode_scale)
    decode_scale = 1 / encode_scale
    block = round_nearest((largest * (encode_scale * (1 / 6))).clamp(max=FP32_LARGEST), E4M3)
    multiplier = (1 / (block * decode_scale)).clamp(max=FP32_LARGEST)  # a block scale of 0 gives codes of ±6, times 0
    return Scaled(tiles * multiplier, block, encode(block, E4M3), amax / 2688)


def _ideal(largest: Tensor, tensor: Tensor) -> Tensor:
    """The block scale under which the largest element becomes 6; 1 for a block of zeros."""
    block = largest / (6 * tensor)
    return torch.where(block > 0, block, 1.0)


def _e4m3(scale: Tensor) -> Tensor:
    """The order of operations of checkpoint export has no block scale of 0."""
    return round_nearest(scale.clamp(2.0**-9, E4M3.largest), E4M3)


def _exported(tiles: Tensor, block: Tensor, tensor: Tensor) -> Scaled:
    """The order of operations of checkpoint export."""
    return Scaled(_divided(tiles, block, tensor), block, encode(block, E4M3), tensor)


def _divided(tiles: Tensor, block: Tensor, tensor: Tensor) -> Tensor:
    divisor = block * tensor
    return tiles / torch.where(divisor == 0, 1.0, divisor)  # a tensor of zeros


def _least_error(tiles: Tensor, candidates: Tensor, tensor: Tensor) -> Tensor:
    """For every block the first of the candidates [N a 1 b 1] with the least squared error of E2M1 elements."""
    rows = max(1, CHUNK // max(1, tiles[:1].numel()))
    chosen = []
    for part, choices in zip(tiles.split(rows), candidates.split(rows, 1), strict=True):
        best = torch.full_like(choices[0], torch.inf)
        scale = choices[0]
        for candidate in choices:
            z = _divided(part, candidate, tensor)
            error = (round_nearest(z, E2M1) - z).square().nansum((1, 3), keepdim=True) * candidate.square()
            scale = torch.where(error < best, candidate, scale)
            best = torch.minimum(error, best)
        chosen.append(scale)
    return torch.cat(chosen)
