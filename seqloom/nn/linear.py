"""The one linear layer: FP32 (or stored) weights, multiplied in the format that the precision recipe chose.

The cast is in plain sight here instead of hidden in an autocast region, so one class serves training with FP32
masters, inference from BF16 files, and every later number format.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from seqloom.numerics.precision import Format, dtype_of


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
        x = x.to(dtype_of(self.format))
        if self.weight.requires_grad or self.weight.dtype == x.dtype:
            return F.linear(x, self.weight.to(x.dtype))
        return _FrozenProduct.apply(x, self.weight)


class _FrozenProduct(torch.autograd.Function):
    """x W^T of a frozen weight stored in another format; it is cast anew for the backward pass, never kept twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return dy @ weight.to(dy.dtype), None
