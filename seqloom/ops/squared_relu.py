"""The squared ReLU, y = relu(x)², whose backward pass needs x alone: dx = 2 relu(x) dy.

Paper: Nemotron-H, section 2 (activation from "Primer").
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqloom.ops.kernels import chosen
from seqloom.ops.recompute import cheap


def squared_relu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """relu(x)² with the implementation chosen for this device and dtype."""
    implementation = chosen("squared_relu", x.device, x.dtype, x)
    if implementation == "native":
        from seqloom.ops.native.squared_relu import squared_relu_native as form
    else:
        form = squared_relu_reference if implementation == "reference" else squared_relu_torch
    return cheap(form, x)


def squared_relu_reference(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """As the formula reads."""
    return x.relu().square()


def squared_relu_torch(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return _SquaredRelu.apply(x)


class _SquaredRelu(torch.autograd.Function):
    """Keeps x, of which everything can be made again, where autograd would keep relu(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu().square_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x.relu().mul_(2).mul_(dy)
