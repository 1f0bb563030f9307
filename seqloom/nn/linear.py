"""The one linear layer: FP32 (or stored) weights, multiplied in the format that the precision recipe chose.

The cast is in plain sight here instead of hidden in an autocast region, so one class serves training with FP32
masters, inference from BF16 files, and formats of few bits, whose three products `ops.quantized_linear` has.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seqloom.numerics.place import Place
from seqloom.numerics.precision import Format, dtype_of
from seqloom.numerics.recipes import Products
from seqloom.ops.linear import linear
from seqloom.ops.quantized_linear import quantized_linear


class Linear(nn.Module):
    """y = x W^T, without bias, as everywhere in the Nemotron family."""

    hidden_matrices: tuple[str, ...] = ("weight",)  # what Muon may orthogonalise; an output head empties it
    low_bit = True  # the hidden matrices can be multiplied in formats of few bits
    products: Products | None = None  # what such a format multiplies in; None in the plain formats
    places: Mapping[str, Place] = MappingProxyType({})  # then by parameter, where it stands

    def __init__(self, in_width: int, out_width: int, *, residual_output: bool = False) -> None:
        """
        Args:
            residual_output: the result is added to the residual stream, so its initial weights are smaller.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_width, in_width))
        self.residual_output = residual_output
        self.format: Format = "fp32"

    def initialise(self, std: float, layers: int) -> None:
        """Normal weights of standard deviation `std`, divided by √layers for residual outputs (Nemotron-H, 1.2)."""
        nn.init.normal_(self.weight, std=std / layers**0.5 if self.residual_output else std)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        if self.products is not None:
            return quantized_linear(x, self.weight, self.products, self.places["weight"])
        return linear(x.to(dtype_of(self.format)), self.weight)
