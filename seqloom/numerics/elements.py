"""The small float formats E2M1, E4M3, E5M2 and the scale format E8M0: rounding, encoding, decoding.

A format of m mantissa bits has the spacing step(x) = 2^max(⌊log2 |x|⌋, 1 - bias) / 2^m, so

    nearest      q = step · round(x / step), ties to even
    stochastic   q = step' · ⌊t / step'⌋ with t = |x| + u · step and step' the spacing at t, u uniform in [0, 1)

always after clamping to the largest finite value, since libraries disagree on what a cast does beyond it. The sign of
zero is kept. NaN stays NaN where the format has one; in E2M1 it becomes +6, as in the conversion instruction.

Papers: FP8 formats (arXiv 2209.05433), OCP MX 1.0, "Pretraining LLMs with NVFP4" (stochastic rounding).
"""

from dataclasses import dataclass
from math import floor, log2

import torch
from jaxtyping import Float32, Integer, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Element:
    """One small float format of at most 8 bits."""

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    largest: float

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def smallest_normal(self) -> float:
        return 2.0 ** (1 - self.bias)

    @property
    def largest_code(self) -> int:
        """Of the largest finite value; greater magnitudes mean infinity or NaN."""
        exponent = floor(log2(self.largest))
        mantissa = int((self.largest / 2.0**exponent - 1) * 2**self.mantissa_bits)
        return (exponent + self.bias) << self.mantissa_bits | mantissa


E2M1 = Element("e2m1", 2, 1, 1, 6.0)
E4M3 = Element("e4m3", 4, 3, 7, 448.0)
E5M2 = Element("e5m2", 5, 2, 15, 57344.0)
ELEMENTS: dict[str, Element] = {each.name: each for each in (E2M1, E4M3, E5M2)}

_EXPONENT, _MANTISSA = 0x7F800000, 0x007FFFFF  # the fields of FP32


def round_nearest(x: Float32[Tensor, "*S"], element: Element) -> Float32[Tensor, "*S"]:
    """The nearest value of the format, ties to the even mantissa."""
    x = x.clamp(-element.largest, element.largest)
    step = _step(x, element)
    return _finish(torch.round(x / step) * step, element)


def round_stochastic(
    x: Float32[Tensor, "*S"], element: Element, random: Integer[Tensor, "*S"], bits: int = 8
) -> Float32[Tensor, "*S"]:
    """One of the two neighbouring values, the upper one with probability (distance to the lower) / spacing.

    Args:
        random: uniform integers of this many bits. With 8 the mean lies up to step / 256 nearer to zero, with 24 it is
            unbiased to noise.
    """
    assert bits <= 24, "more random bits than an FP32 mantissa holds would round before the addition"
    x = x.clamp(-element.largest, element.largest)
    magnitude = x.abs()
    # The product is exact, so this sum rounds once, as a fused multiply-add does.
    moved = random.float() / 2**bits * _step(magnitude, element) + magnitude
    step = _step(moved, element)
    q = (torch.floor(moved / step) * step).clamp(max=element.largest)
    return _finish(q.copysign(x), element)


def encode(values: Float32[Tensor, "*S"], element: Element) -> UInt8[Tensor, "*S"]:
    """The codes of values that lie on the format's grid; NaN gets the code of all ones."""
    pattern = values.view(torch.int32)
    magnitude = pattern & 0x7FFFFFFF
    absolute = magnitude.view(torch.float32)
    normal = (magnitude >> (23 - element.mantissa_bits)) - ((127 - element.bias) << element.mantissa_bits)
    subnormal = (absolute * 2.0 ** (element.bias - 1 + element.mantissa_bits)).int()
    code = torch.where(absolute < element.smallest_normal, subnormal, normal)
    code = code | (pattern < 0).int() << (element.bits - 1)
    return torch.where(values.isnan(), 2 ** (element.bits - 1) - 1, code).to(torch.uint8)


def decode(codes: UInt8[Tensor, "*S"], element: Element) -> Float32[Tensor, "*S"]:
    """The values of codes."""
    wide = codes.int()
    sign_bit = 1 << (element.bits - 1)
    code = wide & (sign_bit - 1)
    shift = 23 - element.mantissa_bits
    normal = ((code << shift) + ((127 - element.bias) << 23)).view(torch.float32)
    subnormal = code.float() * 2.0 ** (1 - element.bias - element.mantissa_bits)
    value = torch.where(code < 1 << element.mantissa_bits, subnormal, normal)
    value = torch.where(code > element.largest_code, torch.nan, value)
    if element is E5M2:
        value = torch.where(code == element.largest_code + 1, torch.inf, value)
    return torch.where((wide & sign_bit) > 0, -value, value)


def e8m0_ceil(amax: Float32[Tensor, "*S"], largest: float) -> UInt8[Tensor, "*S"]:
    """The smallest exponent e with amax / largest <= 2^e, as e + 127, so that nothing in the block saturates."""
    pattern = (amax * (1 / largest)).view(torch.int32)
    exponent, mantissa = (pattern & _EXPONENT) >> 23, pattern & _MANTISSA
    # 2^-127 is a subnormal FP32 number and the smallest scale: what lies below it needs no step up.
    rises = (mantissa > 0) & ~((exponent == 0) & (mantissa <= 1 << 22))
    return _e8m0(amax, exponent + rises.int())


def e8m0_floor(amax: Float32[Tensor, "*S"], element: Element) -> UInt8[Tensor, "*S"]:
    """⌊log2 amax⌋ less the exponent of the format's largest value, as e + 127; the largest values may saturate."""
    exponent = (amax.view(torch.int32) & _EXPONENT) >> 23
    return _e8m0(amax, exponent - floor(log2(element.largest)))


def e8m0_value(codes: UInt8[Tensor, "*S"]) -> Float32[Tensor, "*S"]:
    """2^(code - 127); 255 is NaN."""
    wide = codes.int()
    # Code 0 is the subnormal 2^-127.
    pattern = torch.where(wide == 0, 1 << 22, wide << 23)
    return torch.where(wide == 255, torch.nan, pattern.view(torch.float32))


def power_of_two(x: Float32[Tensor, "*S"]) -> Float32[Tensor, "*S"]:
    """2^⌊log2 x⌋ of positive normal numbers: the mantissa cleared."""
    return (x.view(torch.int32) & _EXPONENT).view(torch.float32)


def _step(x: Tensor, element: Element) -> Tensor:
    """The spacing of the format at x."""
    return power_of_two(x).clamp(min=element.smallest_normal) * 2.0**-element.mantissa_bits


def _finish(q: Tensor, element: Element) -> Tensor:
    return torch.where(q.isnan(), element.largest, q) if element is E2M1 else q


def _e8m0(amax: Tensor, biased: Tensor) -> Tensor:
    return torch.where(amax.isnan(), 255, biased.clamp(0, 254)).to(torch.uint8)
