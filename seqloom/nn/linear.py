"""The one linear layer: FP32 (or stored) weights, multiplied in the format that the precision recipe chose.

The cast is in plain sight here instead of hidden in an autocast region, so one class serves training with FP32
masters, inference from BF16 files, and every later number format.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seqloom.numerics.precision import Format, dtype_of
from seqloom.ops.linear import linear


class Linear(nn.Module):
    """y = x W^T, without bias, as everywhere in the Nemotron family."""

    hidden_matrices: tuple[str, ...] = ("weight",)  # what Muon may orthogonalise; an output head empties it

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
        return linear(x.to(dtype_of(self.format)), self.weight)
