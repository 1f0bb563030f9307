"""The convolution in C++: one pass over the memory of inputs and outputs, forward and backward.

The backward pass computes the pre-activation anew; only the inputs are kept. Inputs may be slices of wider projections.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqloom.ops.native.call import FLAG, POINTER, SIZE, THREADS, kernel, pointer, suffix, threads

MOST_TAPS = 16
_INPUTS = (POINTER, SIZE, SIZE, POINTER, POINTER, FLAG, POINTER, POINTER)
_SIZES = (SIZE, SIZE, SIZE, FLAG, THREADS)
_FORWARD = (*_INPUTS, POINTER, POINTER, *_SIZES)
_BACKWARD = (*_INPUTS, POINTER, SIZE, SIZE, POINTER, POINTER, POINTER, POINTER, *_SIZES)


def causal_conv_native(
    x: Float[Tensor, "B T C"],
    weight: Float[Tensor, "C K"],
    bias: Float[Tensor, "C"],
    window: Float[Tensor, "B W C"] | None,
    numbers: Int[Tensor, "B S"] | None,
) -> Float[Tensor, "B T C"]:
    """Arguments as in `causal_conv_reference`, with S = W + T; no window is one of zeros."""
    return _NativeConv.apply(x, weight, bias, window, numbers)


def causal_conv_continued(
    x: Float[Tensor, "B T C"],
    weight: Float[Tensor, "C K"],
    bias: Float[Tensor, "C"],
    window: Float[Tensor, "B W C"] | None,
) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B W C"]]:
    """Outputs and the next window in one call, without gradients and documents: the step of generation."""
    following = torch.empty(x.shape[0], weight.shape[1] - 1, x.shape[2], dtype=x.dtype)
    return _forward(x, weight, bias, window, None, following), following


class _NativeConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, window: Tensor | None, numbers: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, window, numbers)
        return _forward(x, weight, bias, window, numbers, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, window, numbers = ctx.saved_tensors
        dx = torch.empty(x.shape, dtype=x.dtype)
        dweight, dbias = (torch.empty(t.shape, dtype=torch.float32) for t in (weight, bias))
        dwindow = None if window is None else torch.empty(window.shape, dtype=x.dtype)
        if x.numel() == 0:
            return dx, weight.new_zeros(weight.shape), bias.new_zeros(bias.shape), _zeros(window), None
        dy, ready = _rows(dy), _ready(x, weight, bias, window, numbers)
        kernel(f"causal_conv_backward_{suffix(x.dtype)}", *_BACKWARD)(
            *_inputs(ready), pointer(dy), dy.stride(0), dy.stride(1), pointer(dx), pointer(dwindow), pointer(dweight),
            pointer(dbias), *x.shape, weight.shape[1], threads(),
        )  # fmt: skip
        dwindow = None if window is None or dwindow is None else dwindow.to(window.dtype)
        return dx, dweight.to(weight.dtype), dbias.to(bias.dtype), dwindow, None


def _forward(
    x: Float[Tensor, "B T C"],
    weight: Float[Tensor, "C K"],
    bias: Float[Tensor, "C"],
    window: Float[Tensor, "B W C"] | None,
    numbers: Int[Tensor, "B S"] | None,
    following: Float[Tensor, "B W C"] | None,
) -> Float[Tensor, "B T C"]:
    y = torch.empty(x.shape, dtype=x.dtype)
    if x.shape[0] and x.shape[2]:
        ready = _ready(x, weight, bias, window, numbers)
        kernel(f"causal_conv_forward_{suffix(x.dtype)}", *_FORWARD)(
            *_inputs(ready), pointer(y), pointer(following), *x.shape, weight.shape[1], threads()
        )
    return y


class _Ready(NamedTuple):
    """The inputs as the kernels read them; alive through the call."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    window: Tensor | None
    numbers: Tensor | None


def _ready(x: Tensor, weight: Tensor, bias: Tensor, window: Tensor | None, numbers: Tensor | None) -> _Ready:
    assert weight.shape[1] <= MOST_TAPS
    return _Ready(
        _rows(x),
        weight.contiguous(),
        bias.to(weight.dtype).contiguous(),
        None if window is None else window.to(x.dtype).contiguous(),
        None if numbers is None else numbers.to(torch.int32).contiguous(),
    )


def _inputs(ready: _Ready) -> tuple[int | None, ...]:
    x, weight, bias, window, numbers = ready
    return (
        pointer(x), x.stride(0), x.stride(1), pointer(weight), pointer(bias), int(weight.dtype == torch.bfloat16),
        pointer(window), pointer(numbers),
    )  # fmt: skip


def _rows(x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    """With the channels of a token side by side."""
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def _zeros(window: Float[Tensor, "B W C"] | None) -> Float[Tensor, "B W C"] | None:
    return None if window is None else torch.zeros_like(window)
