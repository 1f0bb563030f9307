"""Quantized weights in the two public layouts: which tensors and which fields of the configuration stand for them.

                     ModelOpt (vLLM, TensorRT-LLM)                     compressed-tensors (transformers)
NVFP4  codes         weight           uint8 [N, K/2]                   weight_packed
       block scales  weight_scale     e4m3  [N, K/16], row-major       weight_scale
       multiplier    weight_scale_2   fp32  amax/2688                  weight_global_scale = 1 / weight_scale_2
       inputs'       input_scale      fp32  amax/2688                  input_global_scale = 1 / input_scale
FP8    codes         weight           e4m3  [N, K]                     weight
       multipliers   weight_scale, input_scale  fp32  amax/448         the same

W = code · block scale · multiplier. Two FP4 codes share a byte, the even element in its low half. Scalars have no axes
in the first layout and one in the second. How such folders declare themselves is in `quantized_config.py`.
Paper: specification of the layouts in Model Optimizer, compressed-tensors and vLLM.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from seqloom.core.checkpoint.json_file import shown
from seqloom.core.checkpoint.tensor_folder import Entry, Planned, TensorFolder
from seqloom.core.errors import CheckpointError
from seqloom.numerics.packing import pack, unpack
from seqloom.numerics.quantized import Quantized
from seqloom.numerics.scheme import FP8_TENSOR, NVFP4_PTQ
from seqloom.ops.packed_linear import PackedWeight
from seqloom.quantize.config import Layout, QuantFormat
from seqloom.quantize.sites import FUSED
from seqloom.systems.hybrid_lm.quantized_config import Declared

_BLOCK = 16
_COMPANIONS = re.compile(r"\.(weight_scale(?:_2)?|weight_global_scale|input_scale|input_global_scale)$")
CACHE_SCALE = re.compile(r"\.(k_proj\.k_scale|v_proj\.v_scale)$")
_EXPERT = re.compile(r"^(.*\.experts)\.\d+\.(\w+)$")


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
        codes, multiplier = tensors.read(self.codes).view(torch.uint8), (float(self.number(tensors, self.multiplier)),)
        if self.format != "fp8":
            scales = tensors.read(self.scale).view(torch.uint8)
            return PackedWeight("nvfp4", codes, scales, multiplier, self.shape[1])
        if bool((codes & 0x7F == 0x7F).any()):
            raise CheckpointError(f"{tensors.entries[self.codes].file}: tensor {shown(self.codes)} has codes of NaN")
        return PackedWeight("fp8", codes, None, multiplier, self.shape[1])

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


def find_packed(declared: Declared, tensors: TensorFolder) -> tuple[list[Packed], set[str]]:
    """The quantized matrices of a folder, and the names of all tensors that serve them.

    Raises:
        CheckpointError: a tensor is missing or misshapen, or contradicts the configuration; which.
    """
    packed, used = list[Packed](), set[str]()
    for name, entry in tensors.entries.items():
        module, _, leaf = name.rpartition(".")
        fp4 = leaf == ("weight_packed" if declared.inverse else "weight") and entry.dtype == torch.uint8
        if fp4 or (leaf == "weight" and entry.dtype == torch.float8_e4m3fn):
            found = _packed(declared, tensors.entries, module, entry, fp4)
            packed.append(found)
            used |= {
                each for each in (found.codes, found.scale, found.multiplier, found.input_scale) if each is not None
            }
        elif CACHE_SCALE.search(name):
            _expect(entry, name, torch.float32, _scalar_shapes)
            used.add(name)
    modules = {each.module for each in packed}
    for name, entry in tensors.entries.items():
        if name not in used and (companion := _COMPANIONS.search(name)):
            module = name[: companion.start()]
            if module in modules and companion[1].startswith("input"):
                used.add(name)  # of a layer whose activations stay as they are
            else:
                raise CheckpointError(f"{entry.file}: tensor {shown(name)} scales no quantized weight")
    return packed, used


def check_scales(packed: list[Packed], tensors: TensorFolder) -> None:
    """Look at every scale, and at those that readers take for several matrices at once.

    Raises:
        CheckpointError: a scale has no meaning, or differs where it must be one; which.
    """
    groups: dict[str, Packed] = {}
    for each in packed:
        each.check(tensors)
        parent, _, leaf = each.module.rpartition(".")
        expert = _EXPERT.match(each.module)
        if leaf in FUSED:
            first = groups.setdefault(f"{parent}.qkv", each)
            names = [(first.multiplier, each.multiplier)] if each.format != "fp8" else []
            if first.input_scale is not None and each.input_scale is not None:
                names.append((first.input_scale, each.input_scale))
        elif expert:  # whose inputs' scales may differ: readers take the largest, which changes no weight
            first, names = groups.setdefault(f"{expert[1]}.{expert[2]}", each), []
        else:
            continue
        if first.format != each.format:
            raise CheckpointError(
                f"{tensors.entries[each.codes].file}: {each.module} is stored in {each.format}, {first.module} in "
                f"{first.format}; fused layers must have one format"
            )
        for one, other in names:
            if not torch.equal(tensors.read(one), tensors.read(other)):
                raise CheckpointError(
                    f"{tensors.entries[other].file}: tensor {shown(other)} differs from {shown(one)}; readers fuse "
                    "these layers and take one scale for all"
                )


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


def _packed(declared: Declared, entries: Mapping[str, Entry], module: str, entry: Entry, fp4: bool) -> Packed:
    if len(entry.shape) != 2:
        raise CheckpointError(f"{entry.file}: tensor '{module}.weight' has shape {entry.shape}; expected a matrix")
    rows, columns = entry.shape[0], entry.shape[1] * (2 if fp4 else 1)
    format = declared.format_of(module, "nvfp4" if fp4 else "fp8", str(entry.file))
    inverse = declared.inverse and fp4

    def find(leaf: str, dtype: torch.dtype, *shapes: tuple[int, ...]) -> str:
        name = f"{module}.{leaf}"
        if name not in entries:
            raise CheckpointError(
                f"{entry.file}: tensor {shown(name)} is missing; without it {module}, stored in {format}, has no values"
            )
        _expect(entries[name], name, dtype, shapes)
        return name

    if fp4 and columns % _BLOCK:
        raise CheckpointError(
            f"{entry.file}: tensor '{module}' holds rows of {columns} codes; blocks have {_BLOCK}, which must divide it"
        )
    multiplier = find(
        ("weight_global_scale" if inverse else "weight_scale_2") if fp4 else "weight_scale",
        torch.float32,
        *_scalar_shapes,
    )
    scale = find("weight_scale", torch.float8_e4m3fn, (rows, columns // _BLOCK)) if fp4 else multiplier
    input_scale = None
    if format != "nvfp4_w4a16":
        input_scale = find("input_global_scale" if inverse else "input_scale", torch.float32, *_scalar_shapes)
    codes = f"{module}.{'weight_packed' if inverse else 'weight'}"
    return Packed(module, format, (rows, columns), codes, scale, multiplier, input_scale, inverse)


_scalar_shapes: tuple[tuple[int, ...], ...] = ((), (1,))


def _expect(entry: Entry, name: str, dtype: torch.dtype, shapes: tuple[tuple[int, ...], ...]) -> None:
    if entry.dtype != dtype or entry.shape not in shapes:
        raise CheckpointError(
            f"{entry.file}: tensor {shown(name)} is {entry.dtype} of shape {entry.shape}; expected {dtype} of shape "
            f"{' or '.join(map(str, shapes))}"
        )


def _planned(name: str, tensor: Tensor) -> Planned:
    return Planned(name, tensor.dtype, tuple(tensor.shape), lambda: [tensor])
