"""The quantized matrices of a folder: found among its tensors, with scales that are there, fit, and agree.

What stands for one matrix is in `quantized_matrix.py`, how a folder declares itself in `quantized_config.py`. Layers
that readers fuse into one (q, k and v; all experts) must have one format, and where a kernel takes one scale for all,
one scale.
"""

import re
from collections.abc import Mapping

import torch

from seqloom.core.checkpoint.json_file import shown
from seqloom.core.checkpoint.tensor_folder import Entry, TensorFolder
from seqloom.core.errors import CheckpointError
from seqloom.quantize.sites import FUSED
from seqloom.systems.hybrid_lm.quantized_config import Declared
from seqloom.systems.hybrid_lm.quantized_matrix import Packed

_BLOCK = 16
_COMPANIONS = re.compile(r"\.(weight_scale(?:_2)?|weight_global_scale|input_scale|input_global_scale)$")
CACHE_SCALE = re.compile(r"\.(k_proj\.k_scale|v_proj\.v_scale)$")
_EXPERT = re.compile(r"^(.*\.experts)\.\d+\.(\w+)$")


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
