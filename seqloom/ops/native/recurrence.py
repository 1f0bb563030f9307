"""Recurrent layers in C++: all steps of all rows in one call, forward and backward, with the weights packed once.

The backward pass through time leaves the gradients by what enters the units; that of the weights is then one product
over all steps. Of a gated layer the gates are kept between the passes. Arithmetic is FP32, also for BF16 tensors.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqloom.ops.linear import product
from seqloom.ops.native.call import FLAG, NUMBER, POINTER, SIZE, THREADS, kernel, pointer, threads
from seqloom.ops.recurrence import LIMIT, Candidate

_LAYER = (SIZE, SIZE, SIZE, POINTER, FLAG, FLAG, NUMBER, POINTER)
_FORWARD = (*_LAYER, POINTER, SIZE, SIZE, *[POINTER] * 3, THREADS)
_BACKWARD = (*_LAYER, *[POINTER] * 7, THREADS)
_RNN, _TANH, _CLIPPED = range(3)


def rnn_native(
    inputs: Float[Tensor, "B T H"],
    weight: Float[Tensor, "H H"],
    lengths: Int[Tensor, "B"],
    initial: Float[Tensor, "B H"] | None = None,
    *,
    reverse: bool = False,
    limit: float = LIMIT,
) -> Float[Tensor, "B T H"]:
    """Arguments and results as in `ops.recurrence.rnn`."""
    return _run(inputs, weight, lengths, initial, _RNN, reverse, limit)


def gru_native(
    inputs: Float[Tensor, "B T X"],
    weight: Float[Tensor, "X H"],
    lengths: Int[Tensor, "B"],
    initial: Float[Tensor, "B H"] | None = None,
    *,
    reverse: bool = False,
    candidate: Candidate = "tanh",
) -> Float[Tensor, "B T H"]:
    """Arguments and results as in `ops.recurrence.gru`."""
    return _run(inputs, weight, lengths, initial, _TANH if candidate == "tanh" else _CLIPPED, reverse, LIMIT)


def _run(
    inputs: Tensor, weight: Tensor, lengths: Tensor, initial: Tensor | None, kind: int, reverse: bool, limit: float
) -> Tensor:
    (rows, steps, entries), width = inputs.shape, weight.shape[1]
    assert weight.shape == (entries, width) == ((1 if kind == _RNN else 3) * width, width), (weight.shape, entries)
    assert lengths.shape == (rows,)
    assert bool(((lengths >= 0) & (lengths <= steps)).all()), "a row is longer than there are steps"
    assert initial is None or initial.shape == (rows, width)
    lengths = lengths.to(torch.int64).contiguous()
    x, u, start = inputs.float(), weight.float(), None if initial is None else initial.float()
    options = (lengths, kind, reverse, limit)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, u, start)):
        states: Tensor = _NativeRecurrence.apply(x, u, start, *options)
    else:
        states, _ = _forward(x, u, start, *options, keep=False)
    return states.to(inputs.dtype)


class _NativeRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, initial: Tensor | None, *options: Any) -> Tensor:
        y, gates = _forward(inputs, weight, initial, *options, keep=True)
        ctx.save_for_backward(weight, initial, y, gates)
        ctx.options = options
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, initial, y, gates = ctx.saved_tensors
        lengths, kind, reverse, limit = ctx.options
        (rows, steps, width), entries = y.shape, len(weight)
        before = _states_before(y, initial, lengths, reverse)
        dx = torch.empty(rows, steps, entries, dtype=torch.float32)
        dsums = None if gates is None else torch.empty(rows, steps, width, dtype=torch.float32)
        dinitial = None if initial is None else torch.empty(rows, width, dtype=torch.float32)
        weight, dy = weight.contiguous(), dy.contiguous()
        kernel("recurrence_backward", *_BACKWARD)(
            *y.shape, pointer(lengths), kind, reverse, limit, pointer(weight),
            *map(pointer, (dy, y, gates, before, dx, dsums, dinitial)), threads(),
        )  # fmt: skip
        dweight = None
        if ctx.needs_input_grad[1]:
            past = before.flatten(0, 1)
            flat = dx.flatten(0, 1)
            parts = [flat] if dsums is None else [flat[:, : 2 * width], dsums.flatten(0, 1)]
            dweight = torch.cat([product(part.mT, past, torch.float32) for part in parts])
        return dx, dweight, dinitial, None, None, None, None


def _forward(
    inputs: Tensor,
    weight: Tensor,
    initial: Tensor | None,
    lengths: Tensor,
    kind: int,
    reverse: bool,
    limit: float,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """States, and the gates of a gated layer if they are to be kept."""
    (rows, steps, entries), width = inputs.shape, weight.shape[1]
    y = torch.empty(rows, steps, width, dtype=torch.float32)
    gates = torch.empty(rows, steps, 4 * width, dtype=torch.float32) if keep and kind != _RNN else None
    inputs = inputs if inputs.stride(2) == 1 or entries == 1 else inputs.contiguous()
    weight, initial = weight.contiguous(), None if initial is None else initial.contiguous()
    kernel("recurrence_forward", *_FORWARD)(
        rows, steps, width, pointer(lengths), kind, reverse, limit, pointer(weight),
        pointer(inputs), *inputs.stride()[:2], *map(pointer, (initial, y, gates)), threads(),
    )  # fmt: skip
    return y, gates


def _states_before(
    y: Float[Tensor, "B T H"], initial: Float[Tensor, "B H"] | None, lengths: Int[Tensor, "B"], reverse: bool
) -> Float[Tensor, "B T H"]:
    """The state that every step began with; past a row's end, where no gradient is, zero or any state."""
    before = torch.zeros_like(y)
    if reverse:
        before[:, :-1] = y[:, 1:]
    else:
        before[:, 1:] = y[:, :-1]
    if initial is not None and before.numel():
        rows = lengths.nonzero()[:, 0]
        before[rows, lengths[rows] - 1 if reverse else 0] = initial[rows]
    return before
