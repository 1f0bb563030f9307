"""Quantizing a matrix under a scheme, slow and plain: the reference that every kernel and file format must equal.

    amax -> scales -> codes = round(x · encode scale),   x ≈ (code · block scale) · tensor scale

Each line of a scale computation is one FP32 operation, in the order of the published kernels; another flips codes.
Scalars are divided as tensors, since torch turns `number / tensor` into a reciprocal and a product. Element times block
scale has at most 6 significant bits and is exact in BF16 (except under FP32 block scales), so a BF16 product of two
`values()` with FP32 accumulation, times the two tensor scales, is what tensor cores compute up to summation order.

NaN is ignored by every amax. An infinite amax gives the scale 1, so the defect stays visible in the values.

Papers: Nemotron-H and Nano 2 (FP8), "Pretraining LLMs with NVFP4" (appendices), OCP MX, MoR (GAM scaling), Nemotron 3
Ultra (four over six).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Integer, UInt8
from torch import Tensor

from seqloom.numerics.block_scales import amax_of, scaled
from seqloom.numerics.elements import ELEMENTS, decode, encode, round_nearest, round_stochastic
from seqloom.numerics.hadamard import hadamard
from seqloom.numerics.philox import random_bits24, random_bytes
from seqloom.numerics.scheme import Scheme

Axis = Literal[0, 1]


@dataclass(frozen=True)
class Quantized:
    """A matrix in few bits: values ≈ (code · block scale) · global scale."""

    codes: UInt8[Tensor, "R C"]
    block_scale: Float32[Tensor, "r c"]
    """Multipliers that decode, one per block, laid out like `codes`; 1 where one scale serves the tensor."""
    block_codes: UInt8[Tensor, "r c"] | None
    """The stored byte of every block scale, E4M3 or E8M0; None where block scales are FP32."""
    global_scale: Float32[Tensor, ""]
    """The tensor's multiplier; 1 where the scheme has none."""
    scheme: Scheme
    axis: Axis
    """The contraction axis, along which blocks run."""

    def values(self) -> Float[Tensor, "R C"]:
        """Code times block scale, without the global scale: BF16 where that is exact, else FP32."""
        values = self._unscaled()
        return values.bfloat16() if self.scheme.exact_in_bf16 else values

    def dequantize(self) -> Float32[Tensor, "R C"]:
        """The values that the matrix stands for."""
        return self._unscaled() * self.global_scale

    def _unscaled(self) -> Tensor:
        values = decode(self.codes, ELEMENTS[self.scheme.element])
        scale = self.block_scale
        sides = (self.scheme.along, self.scheme.across)
        for dim, side in enumerate(sides if self.axis == 0 else sides[::-1]):
            if side not in (None, 1):
                scale = scale.repeat_interleave(side, dim).narrow(dim, 0, values.shape[dim])
        return values * scale


def quantize(
    x: Float[Tensor, "R C"],
    scheme: Scheme,
    axis: Axis = 1,
    *,
    amax: Float32[Tensor, ""] | None = None,
    random: int | None = None,
    bits: int = 8,
    signs: tuple[int, ...] | None = None,
) -> Quantized:
    """Quantize a matrix with blocks along its contraction axis. Incomplete blocks count as filled up with zeros.

    Args:
        x: BF16 or FP32, of any strides.
        amax: the largest magnitude of the whole tensor, of which x may be a part; by default that of x. Schemes without
            a scale per tensor do not use it.
        random: a 64-bit key: round stochastically, with the numbers that Philox gives to the matrix seen as
            [other axis, contraction axis].
        bits: of every random number, 8 or 24.
        signs: apply the random Hadamard transform along the axis first, which pads it to whole tiles; `amax` is then
            that of the transformed tensor.
    """
    if signs is not None:
        x = hadamard(x, axis, signs)
    draws = None
    if random is not None:
        assert bits in (8, 24), f"{bits} random bits"
        rows, columns = x.shape if axis == 1 else x.shape[::-1]
        draws = (random_bytes if bits == 8 else random_bits24)(random, rows, columns, x.device)
    return quantize_drawn(x, scheme, axis, amax, draws, bits)


def quantize_drawn(
    x: Float[Tensor, "R C"],
    scheme: Scheme,
    axis: Axis,
    amax: Float32[Tensor, ""] | None,
    draws: Integer[Tensor, "other contraction"] | None,
    bits: int,
) -> Quantized:
    """As `quantize`, with the random integers given instead of a key; None rounds to nearest."""
    assert x.dtype in (torch.float32, torch.bfloat16), f"{x.dtype} is not quantized"
    element = ELEMENTS[scheme.element]
    rows = (x.T if axis == 0 else x).float()
    tiles = _tiles(rows, scheme)
    scales = scaled(tiles, scheme, element, amax_of(rows) if amax is None else amax.float())
    if draws is None:
        grid = round_nearest(scales.values, element)
    else:
        grid = round_stochastic(scales.values, element, _tiles(draws, scheme), bits)
    codes = encode(grid, element).flatten(2).flatten(0, 1)[: rows.shape[0], : rows.shape[1]]
    block, stored = scales.block[:, 0, :, 0], scales.codes
    parts = (codes, block) if stored is None else (codes, block, stored[:, 0, :, 0])
    oriented = tuple((part.T if axis == 0 else part).contiguous() for part in parts)
    return Quantized(
        codes=oriented[0],
        block_scale=oriented[1],
        block_codes=None if stored is None else oriented[2],
        global_scale=scales.tensor,
        scheme=scheme,
        axis=axis,
    )


def _tiles(rows: Tensor, scheme: Scheme) -> Tensor:
    """[other axis, contraction axis] as block row, row in it, block column, column in it, filled up with zeros."""
    across, along = (side or max(1, size) for side, size in zip((scheme.across, scheme.along), rows.shape, strict=True))
    padded = F.pad(rows, (0, -rows.shape[1] % along, 0, -rows.shape[0] % across))
    return padded.unflatten(1, (-1, along)).unflatten(0, (-1, across))
