"""Depthwise causal convolution with SiLU, over packed documents and from a window of earlier inputs.

    y_tc = SiLU( bias_c + Σ_k weight_ck x_{t-K+1+k, c} )

The last tap meets the present token. A tap that reaches into another document contributes nothing.

The fast form works on blocks of tokens small enough to stay in a core's cache through all passes over them; its
backward pass computes the block's pre-activation anew instead of keeping it.
Paper: Mamba-2; K = 4 in every Nemotron-H checkpoint.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from seqloom.ops.kernels import chosen, is_invariant
from seqloom.ops.recompute import cheap

_BLOCK = 2**18
"""Numbers per block of the fast form: 1 MiB of FP32."""


def causal_conv(
    x: Float[Tensor, "B T C"],
    weight: Float[Tensor, "C K"],
    bias: Float[Tensor, "C"],
    window: Float[Tensor, "B W C"] | None = None,
    documents: Int[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B W C"]]:
    """Convolve with the implementation chosen for this device and dtype.

    Args:
        window: the W = K - 1 inputs before the first; None starts from zeros.
        documents: document numbers of packed rows; the first position continues `window`. -1 marks padding on the
            right, whose output is zero.
    Returns:
        outputs, and the window after the last token of each row (zero where it would reach into another document).
    """
    taps = weight.shape[1]
    implementation = chosen("causal_conv", x.device, x.dtype, x, weight, bias, window, documents)
    numbers = None if documents is None else torch.cat([documents[:, :1].expand(-1, taps - 1), documents], 1)
    before = x.new_zeros(x.shape[0], taps - 1, x.shape[2]) if window is None else window
    if implementation == "native":
        from seqloom.ops.native.causal_conv import causal_conv_continued, causal_conv_native

        if documents is None and not torch.is_grad_enabled():
            return causal_conv_continued(x, weight, bias, window)
        return cheap(causal_conv_native, x, weight, bias, window, numbers), _next_window(x, before, numbers)
    if is_invariant() and (x.shape[:2] != (1, 1) or documents is not None):
        return _one_by_one(x, weight, bias, before, numbers), _next_window(x, before, numbers)
    if implementation == "triton":
        from seqloom.ops.triton.causal_conv import causal_conv_triton as form
    else:
        form = causal_conv_reference if implementation == "reference" else causal_conv_blocked
    return cheap(form, x, weight, bias, before, numbers), _next_window(x, before, numbers)


def _one_by_one(
    x: Float[Tensor, "B T C"],
    weight: Float[Tensor, "C K"],
    bias: Float[Tensor, "C"],
    window: Float[Tensor, "B W C"],
    numbers: Int[Tensor, "B W+T"] | None,
) -> Float[Tensor, "B T C"]:
    """The convolution in calls for one token of one row: operations of torch take other ways for other shapes, which
    shows in the last bits."""
    y, reach = torch.zeros_like(x, memory_format=torch.contiguous_format), window.shape[1]
    inputs = torch.cat([window, x], 1)
    for row, t in product(range(x.shape[0]), range(x.shape[1])):
        one, now, before = slice(row, row + 1), slice(t, t + 1), inputs[row : row + 1, t : t + reach]
        if numbers is not None:
            if numbers[row, reach + t] < 0:
                continue
            here = numbers[one, t : t + reach] == numbers[row, reach + t]
            before = torch.where(here[..., None], before, 0.0)
        y[one, now], _ = causal_conv(x[one, now], weight, bias, before)
    return y


def causal_conv_reference(
    x: Float[Tensor, "B T C"],
    weight: Float[Tensor, "C K"],
    bias: Float[Tensor, "C"],
    window: Float[Tensor, "B W C"],
    numbers: Int[Tensor, "B W+T"] | None,
) -> Float[Tensor, "B T C"]:
    """The convolution tap by tap, as the formula reads.

    Args:
        numbers: document number of every token of `window` and `x`.
    """
    inputs = torch.cat([window, x], 1)
    length, taps = x.shape[1], weight.shape[1]
    total = bias.expand_as(x)
    for k in range(taps):
        term = inputs[:, k : k + length] * weight[:, k]
        total = total + (term if numbers is None else torch.where(_same_document(numbers, k, length), term, 0.0))
    y = F.silu(total).to(x.dtype)
    return y if numbers is None else torch.where(numbers[:, -length:, None] < 0, 0.0, y)


def causal_conv_blocked(
    x: Float[Tensor, "B T C"],
    weight: Float[Tensor, "C K"],
    bias: Float[Tensor, "C"],
    window: Float[Tensor, "B W C"],
    numbers: Int[Tensor, "B W+T"] | None,
) -> Float[Tensor, "B T C"]:
    """The convolution block by block; arguments as in `causal_conv_reference`."""
    return _BlockedConv.apply(x, weight, bias, window, numbers)


class _BlockedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, window: Tensor, numbers: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias, window, numbers)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        dtype = torch.promote_types(x.dtype, torch.float32)
        taps, bias = weight.mT.to(dtype).contiguous(), bias.to(dtype)
        for span in _blocks(x):
            inputs, near = _reach_back(x, window, numbers, span)
            block = F.silu(_weighted_sum(inputs.to(dtype), taps, bias, near), inplace=True)
            y[:, span] = block if near is None else torch.where(near[:, len(taps) - 1 :, None] < 0, 0.0, block)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, window, numbers = ctx.saved_tensors
        dtype = torch.promote_types(x.dtype, torch.float32)
        taps, wide_bias = weight.mT.to(dtype).contiguous(), bias.to(dtype)
        reach = window.shape[1]
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dtaps, dbias = torch.zeros_like(taps), torch.zeros_like(wide_bias)
        dreach = torch.zeros_like(window, dtype=dtype)  # gradient of the inputs a later block reached back to
        for span in reversed(list(_blocks(x))):
            inputs, near = _reach_back(x, window, numbers, span)
            inputs = inputs.to(dtype)
            length = span.stop - span.start
            dsum = dy[:, span].to(dtype)
            if near is not None:
                dsum = torch.where(near[:, reach:, None] < 0, 0.0, dsum)
            dsum = torch.ops.aten.silu_backward(dsum, _weighted_sum(inputs, taps, wide_bias, near))
            dbias += dsum.sum((0, 1))
            dinputs = torch.zeros_like(inputs)
            dinputs[:, length:] = dreach
            for k, tap in enumerate(taps):
                dterm = dsum if near is None else torch.where(_same_document(near, k, length), dsum, 0.0)
                dinputs[:, k : k + length].addcmul_(dterm, tap)
                dtaps[k] += (dterm * inputs[:, k : k + length]).sum((0, 1))
            dx[:, span], dreach = dinputs[:, reach:], dinputs[:, :reach]
        return dx, dtaps.mT.to(weight.dtype), dbias.to(bias.dtype), dreach.to(window.dtype), None


def _blocks(x: Float[Tensor, "B T C"]) -> Iterator[slice]:
    batch, length, channels = x.shape
    size = max(1, _BLOCK // (batch * channels))
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _reach_back(
    x: Float[Tensor, "B T C"], window: Float[Tensor, "B W C"], numbers: Int[Tensor, "B W+T"] | None, span: slice
) -> tuple[Float[Tensor, "B S C"], Int[Tensor, "B S"] | None]:
    """The inputs of a block and the W before it, S in all, with their document numbers."""
    reach = window.shape[1]
    near = None if numbers is None else numbers[:, span.start : span.stop + reach]
    if span.start >= reach:
        return x[:, span.start - reach : span.stop], near
    return torch.cat([window[:, span.start :], x[:, : span.stop]], 1), near


def _weighted_sum(
    inputs: Float[Tensor, "B S C"],
    taps: Float[Tensor, "K C"],
    bias: Float[Tensor, "C"],
    near: Int[Tensor, "B S"] | None,
) -> Float[Tensor, "B Q C"]:
    """The Q = S - K + 1 results before the activation."""
    reach = len(taps) - 1
    length = inputs.shape[1] - reach
    total = torch.addcmul(bias, inputs[:, reach:], taps[reach])
    for k in range(reach):
        term = inputs[:, k : k + length]
        total.addcmul_(term if near is None else torch.where(_same_document(near, k, length), term, 0.0), taps[k])
    return total


def _same_document(numbers: Int[Tensor, "B S"], tap: int, length: int) -> Bool[Tensor, "B T 1"]:
    """Whether the input under a tap lies in the document of the present token."""
    return (numbers[:, tap : tap + length] == numbers[:, -length:])[..., None]


def _next_window(
    x: Float[Tensor, "B T C"], window: Float[Tensor, "B W C"], numbers: Int[Tensor, "B W+T"] | None
) -> Float[Tensor, "B W C"]:
    reach = window.shape[1]
    if numbers is None:
        inputs = torch.cat([window, x[:, max(0, x.shape[1] - reach) :]], 1)
        return inputs[:, inputs.shape[1] - reach :]
    rows = torch.arange(len(x), device=x.device)[:, None]
    end = (numbers[:, reach:] >= 0).sum(1, keepdim=True) + reach  # where padding begins, counted from the window
    place = end - reach + torch.arange(reach, device=x.device)
    inputs = torch.where(
        (place < reach)[..., None], window[rows, place.clamp(max=reach - 1)], x[rows, (place - reach).clamp(min=0)]
    )
    return torch.where((numbers[rows, place] == numbers[rows, end - 1])[..., None], inputs, 0.0)
