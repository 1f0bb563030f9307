"""Linear layers and experts whose weights stay in few bits, for serving: read as they are stored, never learnt.

They stand in the places of `Linear` and `Experts` in a model and compute the same products of other numbers. A packed
weight is no parameter and no buffer: moving or casting a model leaves it alone. Embeddings, routers, norms and
convolutions stay as they are; the output head, often the largest matrix and one that errors pass straight, is in int8
where the others are in fewer bits.
"""

import contextlib
import ctypes
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqloom.nn.large_pages import empty
from seqloom.nn.linear import Linear
from seqloom.nn.moe import Experts
from seqloom.numerics.precision import Format, dtype_of
from seqloom.ops.experts import experts
from seqloom.ops.packed_linear import BLOCK, PackedWeight, pack, packed_linear

ServedFormat = Literal["bf16", "int8", "fp8", "nvfp4"]

_LINE = 64
"""Bytes of a line of the cache, at the borders of which tensors begin."""


class PackedLinear(nn.Module):
    """y = x W^T for a packed W [O, I]."""

    def __init__(self, weight: PackedWeight, format: Format) -> None:
        """
        Args:
            format: of x and y.
        """
        super().__init__()
        self.weight, self.format = weight, format

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return packed_linear(x.to(dtype_of(self.format)), self.weight)


class PackedExperts(nn.Module):
    """Routed experts with packed stacks up [E, F, I] and down [E, I, F]."""

    def __init__(self, up: PackedWeight, down: PackedWeight, format: Format) -> None:
        super().__init__()
        self.up_proj, self.down_proj, self.format = up, down, format

    def forward(
        self, x: Float[Tensor, "S I"], chosen: Int[Tensor, "S J"], weights: Float[Tensor, "S J"]
    ) -> Float[Tensor, "S I"]:
        return experts(x.to(dtype_of(self.format)), chosen, weights, self.up_proj, self.down_proj)


@torch.no_grad()
def pack_linears(model: nn.Module, format: ServedFormat) -> dict[str, str]:
    """Store the weights of all linear layers and experts in one format, one after the other, for serving; of an output
    head in int8 at the least.

    What is packed already stays, and so do layers with adapters or other additions, and, of NVFP4, those whose inputs
    cannot be cut into blocks.

    Returns:
        the format in which each of the layers is stored now, by name.
    """
    formats: dict[str, str] = {}
    for name, module in list(model.named_modules()):
        if type(module) is Linear:
            inside = bool(module.hidden_matrices) or format == "bf16"
            stored = _packed(module.weight, format if inside else "int8")
            if isinstance(stored, PackedWeight):
                replace(model, name, PackedLinear(stored, module.format))
            else:
                module.weight.data = stored
            formats[name] = _name(stored)
        elif type(module) is Experts:
            up, down = _packed(module.up_proj, format), _packed(module.down_proj, format)
            if isinstance(up, PackedWeight) and isinstance(down, PackedWeight):
                replace(model, name, PackedExperts(up, down, module.format))
            elif isinstance(up, Tensor) and isinstance(down, Tensor):
                module.up_proj.data, module.down_proj.data = up, down
            formats[name] = _name(up if type(up) is type(down) else module.up_proj)
    return formats


@torch.no_grad()
def settle(model: nn.Module) -> None:
    """Move the weights of a model on the CPU, which nobody else holds, into large pages; one after the other, so that
    hardly more memory is used meanwhile, and less afterwards."""
    places = [
        (module, name)
        for module in model.modules()
        if isinstance(module, PackedLinear | PackedExperts)
        for name, weight in vars(module).items()
        if isinstance(weight, PackedWeight)
    ]
    plain = [each for each in model.parameters() if each.is_contiguous()]
    sizes = [each.nbytes for each in plain] + [getattr(*place).nbytes + _LINE for place in places]
    room = empty(sum(-(-size // _LINE) * _LINE for size in sizes), dtype=torch.uint8, device=torch.device("cpu"))
    end = 0

    def moved(tensor: Tensor) -> Tensor:
        nonlocal end
        start, end = end, end + -(-tensor.nbytes // _LINE) * _LINE
        return room[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)

    for module, name in places:
        setattr(module, name, getattr(module, name).moved(moved))
    for each in plain:
        each.data = moved(each.data)
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc would keep what smaller matrices leave


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module.train(model.training))


def _packed(weight: Tensor, format: ServedFormat) -> Tensor | PackedWeight:
    if format == "bf16":
        return weight.data.bfloat16()
    return weight.data if format == "nvfp4" and weight.shape[-1] % BLOCK else pack(weight, format)


def _name(stored: Tensor | PackedWeight) -> str:
    return stored.kind if isinstance(stored, PackedWeight) else str(stored.dtype).removeprefix("torch.")
