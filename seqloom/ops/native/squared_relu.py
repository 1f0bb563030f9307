"""The squared ReLU in C++: one pass forward, one backward."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqloom.ops.native.call import POINTER, SIZE, THREADS, kernel, pointer, suffix, threads


def squared_relu_native(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return _SquaredRelu.apply(x)


class _SquaredRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        numbers, y = x.contiguous(), torch.empty(x.shape, dtype=x.dtype)
        kernel(f"squared_relu_forward_{suffix(x.dtype)}", POINTER, POINTER, SIZE, THREADS)(
            pointer(numbers), pointer(y), y.numel(), threads()
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        numbers, dy, dx = x.contiguous(), dy.contiguous(), torch.empty(x.shape, dtype=x.dtype)
        kernel(f"squared_relu_backward_{suffix(x.dtype)}", POINTER, POINTER, POINTER, SIZE, THREADS)(
            pointer(numbers), pointer(dy), pointer(dx), dx.numel(), threads()
        )
        return dx
