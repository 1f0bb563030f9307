"""y = x W^T with W in few bits, read as it is stored: the product of serving, where reading the weights is the work.

    int8     symmetric, an FP16 scale for every 32 along the inputs          8.5 bits a weight
    fp8      E4M3, one multiplier for the matrix                             8
    nvfp4    packed E2M1, an E4M3 scale for every 16, and one multiplier     4.5; as public checkpoints have it

    W = code · scale · multiplier

Codes are widened exactly, sums are FP32, and the multiplier comes last. A row has the same result, to the last bit,
among any number of neighbours.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float32
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


class PackedWeight(NamedTuple):
    """A matrix [N, K] in few bits, or a stack of E of them.

    Attributes:
        codes: contiguous; int8 [*E N K], uint8 [*E N K] of E4M3, or uint8 [*E N K/2], the even code in the low half.
        scales: contiguous; float16 [*E N ⌈K/32⌉], none, or uint8 [*E N K/16] of E4M3.
        multipliers: one for every matrix.
        inputs: K.
    """

    kind: Kind
    codes: Tensor
    scales: Tensor | None
    multipliers: tuple[float, ...]
    inputs: int

    @property
    def shape(self) -> torch.Size:
        """Of the numbers that it stands for."""
        return torch.Size((*self.codes.shape[:-1], self.inputs))

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def matrix(self, expert: int) -> "PackedWeight":
        """One matrix of a stack."""
        scales = None if self.scales is None else self.scales[expert]
        return PackedWeight(self.kind, self.codes[expert], scales, (self.multipliers[expert],), self.inputs)

    def dequantize(self) -> Float32[Tensor, "*E N K"]:
        """The numbers."""
        if self.kind == "int8":
            values = self.codes.float()
        else:
            values = decode(self.codes, E4M3) if self.kind == "fp8" else decode(unpack(self.codes), E2M1)
        if self.scales is not None:
            scales = self.scales.float() if self.kind == "int8" else decode(self.scales, E4M3)
            side = GROUP if self.kind == "int8" else BLOCK
            values = values * scales.repeat_interleave(side, -1)[..., : self.inputs]
        multipliers = torch.tensor(self.multipliers, device=values.device)
        return values * (multipliers[:, None, None] if values.dim() == 3 else multipliers)


def pack(weight: Float[Tensor, "*E N K"], kind: Kind) -> PackedWeight:
    """The nearest codes; scales are those of the largest magnitude, as checkpoints are exported."""
    matrices = weight.detach().float().reshape(-1, *weight.shape[-2:])
    packed = [(_pack_int8 if kind == "int8" else _pack_floats)(matrix, kind) for matrix in matrices]
    codes, scales, multipliers = zip(*packed, strict=True)
    lead = weight.shape[:-2]
    return PackedWeight(
        kind,
        torch.stack(codes).reshape(*lead, *codes[0].shape),
        None if scales[0] is None else torch.stack(scales).reshape(*lead, *scales[0].shape),
        multipliers,
        weight.shape[-1],
    )


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


def _pack_int8(weight: Float32[Tensor, "N K"], _kind: Kind) -> tuple[Tensor, Tensor, float]:
    groups = F.pad(weight, (0, -weight.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    scales = (groups.abs().amax(-1) / 127).half()
    codes = (groups / scales.float().clamp(min=2.0**-24)[..., None]).round().clamp(-127, 127).to(torch.int8)
    return codes.flatten(1)[:, : weight.shape[1]].contiguous(), scales, 1.0


def _pack_floats(weight: Float32[Tensor, "N K"], kind: Kind) -> tuple[Tensor, Tensor | None, float]:
    quantized = quantize(weight, FP8_TENSOR if kind == "fp8" else NVFP4_PTQ)
    codes = quantized.codes if kind == "fp8" else pairs(quantized.codes)
    return codes, quantized.block_codes, float(quantized.global_scale)
