"""y = x W^T with W in few bits, read as it is stored: the product of serving, where reading the weights is the work.

    int8     symmetric, an FP16 scale for every 32 along the inputs          8.5 bits a weight
    fp8      E4M3, one multiplier for the matrix                             8
    nvfp4    packed E2M1, an E4M3 scale for every 16, and one multiplier     4.5; as public checkpoints have it

    W = code · scale · multiplier

A row has the same result, to the last bit, among any number of neighbours, and the multiplier comes last. With fp8
codes are widened exactly and sums are FP32. With int8 and nvfp4 the native form multiplies integers: 32 inputs together
are rounded to 16 bits under a power of two (an error of at most 2^-15 of the largest; BF16 inputs within 2^7 of the
largest stay exact), the products of a scale's codes are added exactly, and these sums in FP32.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.nn import functional as F

from seqloom.numerics.elements import E2M1, E4M3, decode
from seqloom.numerics.packing import pack as pairs
from seqloom.numerics.packing import unpack
from seqloom.numerics.quantized import quantize
from seqloom.numerics.scheme import FP8_TENSOR, NVFP4_PTQ
from seqloom.ops.kernels import chosen, is_invariant
from seqloom.ops.linear import row_by_row

Kind = Literal["int8", "fp8", "nvfp4"]

GROUP = 32
"""Inputs that share a scale of int8."""
BLOCK = 16
"""Inputs that share a scale of nvfp4, which must divide their number."""
PANEL = 8
"""Outputs that lie side by side."""
_PLACES = (0, 2, 1, 3)
"""Which of four inputs' codes are in the bytes of a word."""


class PackedWeight(NamedTuple):
    """A matrix [N, K] in few bits, or a stack of E of them.

    int8 and nvfp4 are kept as `ops/native/panels.h` reads them: in panels of 8 outputs and of whole groups of 32
    inputs, zeros behind the last. Words of four bytes, one for each output, hold four inputs in the order 0, 2, 1, 3,
    or eight, of which the last four are in the upper halves.

    Attributes:
        codes: contiguous; int8 [*E N/8 K/4 8 4], uint8 [*E N K] of E4M3, or uint8 [*E N/8 K/8 8 4].
        scales: contiguous; float16 [*E N/8 K/32 8], none, or uint8 [*E N/8 K/16 8] of E4M3.
        multipliers: one for every matrix.
        outputs, inputs: N and K.
    """

    kind: Kind
    codes: Tensor
    scales: Tensor | None
    multipliers: tuple[float, ...]
    outputs: int
    inputs: int

    @property
    def shape(self) -> torch.Size:
        """Of the numbers that it stands for."""
        return torch.Size((*self.codes.shape[: -2 if self.kind == "fp8" else -4], self.outputs, self.inputs))

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def matrix(self, expert: int) -> "PackedWeight":
        """One matrix of a stack."""
        scales = None if self.scales is None else self.scales[expert]
        return self._replace(codes=self.codes[expert], scales=scales, multipliers=(self.multipliers[expert],))

    def moved(self, move: Callable[[Tensor], Tensor]) -> "PackedWeight":
        """With codes and scales at another place."""
        return self._replace(codes=move(self.codes), scales=None if self.scales is None else move(self.scales))

    def rows(self, chosen: Int[Tensor, "R"]) -> "PackedWeight":
        """Some rows of a matrix, as a matrix."""
        if self.scales is None:
            return self._replace(codes=self.codes[chosen], outputs=len(chosen))
        padded = F.pad(chosen, (0, -len(chosen) % PANEL))
        codes, scales = (
            each[padded // PANEL, :, padded % PANEL].unflatten(0, (-1, PANEL)).movedim(1, 2).contiguous()
            for each in (self.codes, self.scales)
        )
        return self._replace(codes=codes, scales=scales, outputs=len(chosen))

    def dequantize(self) -> Float32[Tensor, "*E N K"]:
        """The numbers."""
        if self.scales is None:
            values = decode(self.codes, E4M3)
        else:
            words = unpack(self.codes) if self.kind == "nvfp4" else self.codes
            inputs = words.unflatten(-1, (4, -1))[..., _PLACES, :].mT
            codes = inputs.movedim(-3, -4).flatten(-3).flatten(-3, -2)[..., : self.outputs, : self.inputs]
            scales = self.scales.mT.flatten(-3, -2)[..., : self.outputs, :]
            values, scales, side = (
                (codes.float(), scales.float(), GROUP)
                if self.kind == "int8"
                else (decode(codes, E2M1), decode(scales, E4M3), BLOCK)
            )
            values = values * scales.repeat_interleave(side, -1)[..., : self.inputs]
        multipliers = torch.tensor(self.multipliers, device=values.device)
        return values * (multipliers[:, None, None] if values.dim() == 3 else multipliers)


def packed_rows(kind: Kind, codes: Tensor, scales: Tensor | None, multipliers: tuple[float, ...]) -> PackedWeight:
    """A matrix, or a stack of them, from what is stored row by row, as in checkpoints.

    Args:
        codes: int8 [*E N K], uint8 [*E N K] of E4M3, or uint8 [*E N K/2] of E2M1, the first code in the low half.
        scales: float16 [*E N ⌈K/32⌉], none, or uint8 [*E N K/16] of E4M3.
    """
    outputs, inputs = codes.shape[-2:]
    if kind == "nvfp4":
        codes, inputs = unpack(codes), 2 * inputs
    if scales is not None:
        halves, side = (2, BLOCK) if kind == "nvfp4" else (1, GROUP)
        rows, groups = -(-outputs // PANEL) * PANEL, -(-inputs // GROUP)
        codes = F.pad(codes, (0, groups * GROUP - inputs, 0, rows - outputs)).unflatten(-2, (-1, PANEL))
        words = codes.unflatten(-1, (-1, halves, 4))[..., _PLACES].movedim(-4, -3)
        codes = words.mT.flatten(-2)
        codes = (pairs(codes) if kind == "nvfp4" else codes).contiguous()
        scales = F.pad(scales, (0, groups * GROUP // side - scales.shape[-1], 0, rows - outputs))
        scales = scales.unflatten(-2, (-1, PANEL)).mT.contiguous()
    return PackedWeight(kind, codes.contiguous(), scales, multipliers, outputs, inputs)


def stack(weights: Sequence[PackedWeight]) -> PackedWeight:
    """Matrices of one kind and shape as a stack."""
    scales = [each.scales for each in weights if each.scales is not None]
    return weights[0]._replace(
        codes=torch.stack([each.codes for each in weights]),
        scales=torch.stack(scales) if scales else None,
        multipliers=tuple(each.multipliers[0] for each in weights),
    )


def pack(weight: Float[Tensor, "*E N K"], kind: Kind) -> PackedWeight:
    """The nearest codes; scales are those of the largest magnitude, as checkpoints are exported."""
    matrices = weight.detach().float().reshape(-1, *weight.shape[-2:])
    packed = [(_pack_int8 if kind == "int8" else _pack_floats)(matrix, kind) for matrix in matrices]
    return stack(packed) if weight.dim() == 3 else packed[0]


def packed_linear(x: Float[Tensor, "*B I"], weight: PackedWeight) -> Float[Tensor, "*B O"]:
    """x W^T in the dtype of `x`, with the implementation chosen for this device and dtype."""
    implementation = chosen("packed_linear", x.device, x.dtype, x)
    if implementation == "reference":
        return packed_linear_reference(x, weight)
    if implementation == "native" and not (torch.is_grad_enabled() and x.requires_grad):
        from seqloom.ops.native.packed_linear import packed_linear_native

        return packed_linear_native(x, weight)
    return packed_linear_torch(x, weight)


def packed_linear_reference(x: Float[Tensor, "*B I"], weight: PackedWeight) -> Float[Tensor, "*B O"]:
    """As the formula reads."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.einsum("...i,oi->...o", x.to(wide), weight.dequantize().to(wide)).to(x.dtype)


def packed_linear_torch(x: Float[Tensor, "*B I"], weight: PackedWeight) -> Float[Tensor, "*B O"]:
    """Through the whole matrix in FP32."""
    values = weight.dequantize()
    wide = x.to(torch.promote_types(x.dtype, values.dtype))
    return (row_by_row(wide, values) if is_invariant() else wide @ values.to(wide.dtype).mT).to(x.dtype)


def _pack_int8(weight: Float32[Tensor, "N K"], kind: Kind) -> PackedWeight:
    groups = F.pad(weight, (0, -weight.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    scales = (groups.abs().amax(-1) / 127).half()
    codes = (groups / scales.float().clamp(min=2.0**-24)[..., None]).round().clamp(-127, 127).to(torch.int8)
    return packed_rows(kind, codes.flatten(1)[:, : weight.shape[1]], scales, (1.0,))


def _pack_floats(weight: Float32[Tensor, "N K"], kind: Kind) -> PackedWeight:
    quantized = quantize(weight, FP8_TENSOR if kind == "fp8" else NVFP4_PTQ)
    codes = quantized.codes if kind == "fp8" else pairs(quantized.codes)
    return packed_rows(kind, codes, quantized.block_codes, (float(quantized.global_scale),))
