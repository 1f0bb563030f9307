"""The products of a model whose weights can be quantized, and a way to compute them otherwise for a while.

A site is one linear layer, or the up or down product of all routed experts of a layer. Sites of a group share a format;
those of q, k and v, which readers fuse into one matrix, share the scale of the weights too.
"""

from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqloom.nn.linear import Linear
from seqloom.nn.moe import Experts
from seqloom.numerics.precision import dtype_of
from seqloom.ops.squared_relu import squared_relu

Product = Callable[[str, Tensor, Tensor, int], Tensor]
"""(site, x [* I], weight [O I], number of the matrix within the site) -> y [* O] in the dtype of x."""

FUSED = ("q_proj", "k_proj", "v_proj")
"""Layers that readers take for one matrix."""


@dataclass(frozen=True)
class Site:
    """A product whose weight may be quantized.

    Attributes:
        name: of the linear layer, or of the stack of experts' matrices.
        matrices: the weights, as one stack; all have the same inputs' scale.
        group: sites of a group have one format.
        fused: the sites of the group also share the largest magnitude of weights and inputs.
    """

    name: str
    matrices: Float[Tensor, "E O I"]
    group: str
    fused: bool = False


def sites(model: nn.Module) -> list[Site]:
    """Every product with a weight of its own, in the model's order."""
    found = []
    for name, module in model.named_modules():
        parent, _, leaf = name.rpartition(".")
        if isinstance(module, Linear):
            fused = leaf in FUSED
            found.append(Site(name, module.weight.detach()[None], f"{parent}.qkv" if fused else name, fused))
        elif isinstance(module, Experts):
            found += [Site(f"{name}.{each}", getattr(module, each).detach(), name) for each in module.hidden_matrices]
    return found


def grouped(chosen: Iterable[Site]) -> list[list[Site]]:
    """The sites of each group, in the model's order."""
    groups: dict[str, list[Site]] = {}
    for site in chosen:
        groups.setdefault(site.group, []).append(site)
    return list(groups.values())


@contextmanager
def through(model: nn.Module, names: Container[str], product: Product) -> Iterator[None]:
    """Compute the products of these sites by `product`, until the end of the block."""
    changed = []
    for name, module in model.named_modules():
        if isinstance(module, Linear) and name in names:
            forward: Callable[..., Tensor] = partial(_linear, module, name, product)
        elif isinstance(module, Experts) and f"{name}.up_proj" in names:
            forward = partial(_experts, module, name, product)
        else:
            continue
        module.__dict__["forward"] = forward  # found before the method of the class
        changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]


def _linear(module: Linear, name: str, product: Product, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
    return product(name, x.to(dtype_of(module.format)), module.weight, 0)


def _experts(
    module: Experts,
    name: str,
    product: Product,
    x: Float[Tensor, "S I"],
    chosen: Int[Tensor, "S J"],
    weights: Float[Tensor, "S J"],
) -> Float[Tensor, "S I"]:
    """Expert by expert, each on the tokens sent to it."""
    x = x.to(dtype_of(module.format))
    total = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    for expert in range(len(module.up_proj)):
        rows, slots = (chosen == expert).nonzero(as_tuple=True)
        if len(rows):
            hidden = product(f"{name}.up_proj", x[rows], module.up_proj[expert], expert)
            y = product(f"{name}.down_proj", squared_relu(hidden), module.down_proj[expert], expert)
            total = total.index_add(0, rows, weights[rows, slots, None] * y.to(total.dtype))
    return total.to(x.dtype)
