"""SSM states in fewer bits: 16-bit floats, and 8-bit codes with one FP32 scale for a block of state elements.

    nearest       q = round(x / s)               stochastic    q = ⌊x / s + u⌋,  u uniform in [0, 1)
    s = largest magnitude of the block / largest code, over up to 128 elements along N

FP16 and FP8 have steps that depend on the value; `numerics.elements` rounds to them. With 13 random bits, as many as
FP32 has beyond FP16, the mean of a rounded FP32 number is that number exactly.
Papers: Nemotron 3 Super and Ultra, on the precision of the SSM cache.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from seqloom.numerics.elements import E4M3, Element, round_stochastic
from seqloom.numerics.philox import random_words

BLOCK = 128
"""State elements along N that share a scale, at most; fewer at the end of a row that is no multiple of it."""

NarrowFormat = Literal["bf16", "fp16", "fp16_sr", "int8", "int8_sr", "fp8", "fp8_sr"]

_FP16 = Element("fp16", 5, 10, 15, 65504.0)
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
_LARGEST = {"int8": 127.0, "fp8": E4M3.largest}
_NOISE_BITS, _FP16_BITS = 16, 13
_PER_COUNTER = 8  # elements that get their 16 bits from the four words of one counter
_SMALLEST_SCALE = 2.0**-126  # keeps blocks of zeros zero


class Narrow(NamedTuple):
    """SSM states as stored.

    Attributes:
        scales: multipliers of the blocks along N; None where the format needs none.
    """

    codes: Tensor
    scales: Float32[Tensor, "B H P _"] | None


def narrow(
    ssm: Float32[Tensor, "B H P N"], format: NarrowFormat, noise: Int64[Tensor, "B H P N"] | None = None
) -> Narrow:
    """Round states.

    Args:
        noise: 16 uniform random bits for every element, of stochastic formats.
    """
    kind = format.removesuffix("_sr")
    assert (noise is not None) == stochastic(format)
    if kind not in _LARGEST:
        return Narrow(_float16(ssm, noise).to(_DTYPES[kind]), None)
    largest = _LARGEST[kind]
    blocks = _blocks(ssm)
    scales = (blocks.abs().amax(-1) / largest).clamp(min=_SMALLEST_SCALE)
    scaled = (blocks / scales[..., None]).flatten(-2)[..., : ssm.shape[-1]].clamp(-largest, largest)
    if kind == "fp8":
        values = scaled if noise is None else round_stochastic(scaled, E4M3, noise, _NOISE_BITS)
    elif noise is None:
        values = scaled.round()
    else:  # the middle of the interval that each draw stands for, so that the mean is right
        values = torch.floor(scaled + (noise + 0.5) / 2**_NOISE_BITS).clamp(-largest, largest)
    return Narrow(values.to(_DTYPES[kind]), scales)


def widen(stored: Narrow) -> Float32[Tensor, "B H P N"]:
    """The states that are stored."""
    values = stored.codes.float()
    if stored.scales is None:
        return values
    return (_blocks(values) * stored.scales[..., None]).flatten(-2)[..., : values.shape[-1]]


def stochastic(format: NarrowFormat) -> bool:
    return format.endswith("_sr")


def rounding_noise(key: int, positions: Int64[Tensor, "B"], shape: torch.Size, device: torch.device) -> Tensor:
    """16 random bits for every element of every row's state, a function of key, the row's position and the element.

    Args:
        key: 64 bits.
        positions: tokens that each row has seen.
        shape: H P N.
    """
    places, row = positions, torch.arange(len(positions), device=device)
    if positions.is_cpu:  # elsewhere a shape that depends on data would stall
        places, row = positions.unique(return_inverse=True)  # rows of one position share their bits, and the work
    groups = -(-shape.numel() // _PER_COUNTER)
    place = places.to(device).repeat_interleave(groups)
    group = torch.arange(groups, device=device).repeat(len(places))
    counters = torch.stack((group, place & 0xFFFFFFFF, place >> 32, torch.zeros_like(place)), 1)
    words = random_words(key, counters)
    halves = torch.stack((words & 0xFFFF, words >> 16), -1).view(len(places), groups * _PER_COUNTER)[:, : shape.numel()]
    return halves[row.to(device)].view(len(row), *shape)


def _float16(ssm: Float[Tensor, "B H P N"], noise: Tensor | None) -> Tensor:
    ssm = ssm.clamp(-_FP16.largest, _FP16.largest)
    return ssm if noise is None else round_stochastic(ssm, _FP16, noise >> _NOISE_BITS - _FP16_BITS, _FP16_BITS)


def _blocks(x: Float[Tensor, "B H P N"]) -> Float[Tensor, "B H P _ _"]:
    """Rows cut into blocks, the last one padded with zeros."""
    size = min(BLOCK, x.shape[-1])
    return F.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))
