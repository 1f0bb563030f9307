"""A quantized matrix in the two public layouts: which tensors stand for it, read and written.

                     ModelOpt (vLLM, TensorRT-LLM)                     compressed-tensors (transformers)
NVFP4  codes         weight           uint8 [N, K/2]                   weight_packed
       block scales  weight_scale     e4m3  [N, K/16], row-major       weight_scale
       multiplier    weight_scale_2   fp32  amax/2688                  weight_global_scale = 1 / weight_scale_2
       inputs'       input_scale      fp32  amax/2688                  input_global_scale = 1 / input_scale
FP8    codes         weight           e4m3  [N, K]                     weight
       multipliers   weight_scale, input_scale  fp32  amax/448         the same

W = code · block scale · multiplier. Two FP4 codes share a byte, the even element in its low half. Scalars have no axes
in the first layout and one in the second.
Paper: specification of the layouts in Model Optimizer, compressed-tensors and vLLM.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from seqloom.core.checkpoint.json_file import shown
from seqloom.core.checkpoint.tensor_folder import Planned, TensorFolder
from seqloom.core.errors import CheckpointError
from seqloom.numerics.packing import pack, unpack
from seqloom.numerics.quantized import Quantized
from seqloom.numerics.scheme import FP8_TENSOR, NVFP4_PTQ
from seqloom.ops.packed_linear import PackedWeight, packed_rows
from seqloom.quantize.config import Layout, QuantFormat


class Packed(NamedTuple):
    """A quantized matrix as it is stored.

    Attributes:
        module: its layer, as named on disk.
        shape: of the matrix, [N, K].
        codes, scale, multiplier, input_scale: names of tensors; `multiplier` is `scale` where it is one number, and
            `input_scale` is None where activations are not quantized.
        inverse: the multiplier and the inputs' scale are stored as their reciprocals.
    """

    module: str
    format: QuantFormat
    shape: tuple[int, int]
    codes: str
    scale: str
    multiplier: str
    input_scale: str | None
    inverse: bool

    def dequantize(self, tensors: TensorFolder, rows: slice | None = None) -> Float32[Tensor, "n K"]:
        """The matrix, or some of its rows, exactly as it was meant."""
        codes = tensors.read(self.codes, rows).view(torch.uint8)
        block_codes = None
        block_scale = torch.ones(1, 1)
        if self.format != "fp8":
            codes = unpack(codes)
            stored = tensors.read(self.scale, rows)
            block_codes, block_scale = stored.view(torch.uint8), stored.float()
        return Quantized(
            codes=codes,
            block_scale=block_scale,
            block_codes=block_codes,
            global_scale=self.number(tensors, self.multiplier),
            scheme=FP8_TENSOR if self.format == "fp8" else NVFP4_PTQ,
            axis=1,
        ).dequantize()

    def as_stored(self, tensors: TensorFolder) -> PackedWeight:
        """The matrix in the bits of the file.

        Raises:
            CheckpointError: a code means no number.
        """
        multiplier = (float(self.number(tensors, self.multiplier)),)
        if self.format != "fp8":
            scales = self._numbers(tensors, self.scale)
            return packed_rows("nvfp4", tensors.read(self.codes).view(torch.uint8), scales, multiplier)
        return packed_rows("fp8", self._numbers(tensors, self.codes), None, multiplier)

    def _numbers(self, tensors: TensorFolder, name: str) -> Tensor:
        """Codes of E4M3, all of which are numbers."""
        codes = tensors.read(name).view(torch.uint8)
        if bool((codes & 0x7F == 0x7F).any()):
            raise CheckpointError(f"{tensors.entries[name].file}: tensor {shown(name)} has codes of NaN")
        return codes

    def number(self, tensors: TensorFolder, name: str) -> Float32[Tensor, ""]:
        """A stored scalar as a multiplier."""
        stored = torch.tensor(read_scale(tensors, name))
        return 1 / stored if self.inverse else stored

    def check(self, tensors: TensorFolder) -> None:
        """
        Raises:
            CheckpointError: a scale has no meaning, or looks like the reciprocal of one.
        """
        value = self.number(tensors, self.multiplier)
        if self.input_scale is not None:
            self.number(tensors, self.input_scale)
        # Under scales found in the usual ways the largest weight is at least 1536 multipliers.
        if self.format != "fp8" and value > 1 and tensors.read(self.codes).bitwise_and(0x77).any():
            other = "weight_scale_2" if self.inverse else "weight_global_scale"
            raise CheckpointError(
                f"{tensors.entries[self.multiplier].file}: tensor {shown(self.multiplier)} makes weights as large as "
                f"{1536 * value:,.0f}; it looks like the reciprocal, which is what {other} holds in the other layout"
            )


def read_scale(tensors: TensorFolder, name: str) -> float:
    """
    Raises:
        CheckpointError: it is no finite number above 0.
    """
    value = float(tensors.read(name).reshape(()))
    if not 0 < value < math.inf:
        raise CheckpointError(
            f"{tensors.entries[name].file}: tensor {shown(name)} is {value:g}; a scale must be a finite number above 0"
        )
    return value


def planned_matrix(
    layout: Layout, module: str, format: QuantFormat, weight: Quantized, input_scale: Tensor
) -> list[Planned]:
    """The tensors that stand for one quantized matrix."""
    inverse = layout == "compressed-tensors"
    multiplier = stored_multiplier(layout, format, weight)

    def scalar(name: str, value: Tensor) -> Planned:
        return _planned(f"{module}.{name}", value.float().reshape((1,) if inverse else ()))

    if format == "fp8":
        codes = weight.codes.view(torch.float8_e4m3fn)
        return [
            _planned(f"{module}.weight", codes),
            scalar("weight_scale", multiplier),
            scalar("input_scale", input_scale),
        ]
    assert weight.block_codes is not None
    packed, (rows, columns) = f"{module}.{'weight_packed' if inverse else 'weight'}", weight.codes.shape
    result = [
        Planned(packed, torch.uint8, (rows, columns // 2), lambda: [pack(weight.codes)]),
        _planned(f"{module}.weight_scale", weight.block_codes.view(torch.float8_e4m3fn)),
        scalar("weight_global_scale" if inverse else "weight_scale_2", multiplier),
    ]
    if format == "nvfp4":
        name, value = ("input_global_scale", 1 / input_scale) if inverse else ("input_scale", input_scale)
        result.append(scalar(name, value))
    return result


def stored_multiplier(layout: Layout, format: QuantFormat, weight: Quantized) -> Float32[Tensor, ""]:
    """The number that is stored for the scale of a whole matrix; a matrix of zeros has 1."""
    value = torch.where(weight.global_scale == 0, 1.0, weight.global_scale)
    return 1 / value if layout == "compressed-tensors" and format != "fp8" else value


def meant(layout: Layout, format: QuantFormat, weight: Quantized) -> Float32[Tensor, "N K"]:
    """The values that a reader of the layout gets: where reciprocals are stored, their rounding is part of them."""
    stored = stored_multiplier(layout, format, weight)
    inverse = layout == "compressed-tensors" and format != "fp8"
    return weight.values().float() * (1 / stored if inverse else stored)


def planned_cache_scales(keys: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[Planned]:
    """The multipliers of cached keys and values, by the name of the attention module."""
    for module in keys:
        yield _planned(f"{module}.k_proj.k_scale", keys[module].float().reshape(()))
        yield _planned(f"{module}.v_proj.v_scale", values[module].float().reshape(()))


def _planned(name: str, tensor: Tensor) -> Planned:
    return Planned(name, tensor.dtype, tuple(tensor.shape), lambda: [tensor])
