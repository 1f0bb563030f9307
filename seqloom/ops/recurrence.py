"""Recurrent layers over ragged rows: what remains after the products with the layer's input have been taken.

    rnn    h_t = min(max(x_t + U h_{t-1}, 0), limit)
    gru    z = σ(x_z + U_z h),  r = σ(x_r + U_r h),  n = f(x_n + r ∘ (U_n h)),  h' = (1 − z) ∘ h + z ∘ n

The input parts x hold biases and norms already, so all input products of a layer are one large product outside, and
only U h waits for the step before. A row ends at its own length; read backwards, it begins there.
Paper: Deep Speech 2, sections 3.2 and 3.4.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from seqloom.ops.kernels import chosen

LIMIT = 20.0
"""Where the clipped ReLU is cut, section 3.2."""

Candidate = Literal["tanh", "clipped_relu"]


def rnn(
    inputs: Float[Tensor, "B T H"],
    weight: Float[Tensor, "H H"],
    lengths: Int[Tensor, "B"],
    initial: Float[Tensor, "B H"] | None = None,
    *,
    reverse: bool = False,
    limit: float = LIMIT,
) -> Float[Tensor, "B T H"]:
    """Hidden states of the clipped-ReLU recurrence, with the implementation chosen for this device and dtype.

    Args:
        weight: U, one row for every unit.
        lengths: steps of every row, at most T. States beyond are zero, and what stands there in `inputs` is ignored.
        initial: the state before the first step that is taken; None starts from zeros.
        reverse: from a row's last step to its first.
        limit: where the ReLU is cut; infinity leaves it whole. No gradient passes at 0 and at the limit.
    """
    implementation = chosen("recurrence", inputs.device, inputs.dtype, inputs, weight, lengths, initial)
    if implementation == "native":
        from seqloom.ops.native.recurrence import rnn_native as form
    else:
        form = rnn_reference if implementation == "reference" else rnn_torch
    return form(inputs, weight, lengths, initial, reverse=reverse, limit=limit)


def gru(
    inputs: Float[Tensor, "B T X"],
    weight: Float[Tensor, "X H"],
    lengths: Int[Tensor, "B"],
    initial: Float[Tensor, "B H"] | None = None,
    *,
    reverse: bool = False,
    candidate: Candidate = "tanh",
) -> Float[Tensor, "B T H"]:
    """Hidden states of the gated recurrence, with the implementation chosen for this device and dtype.

    Args:
        inputs: the parts of z, r and n side by side, X = 3 H.
        weight: U_z, U_r and U_n one below the other.
        candidate: f. The others as in `rnn`.
    """
    implementation = chosen("recurrence", inputs.device, inputs.dtype, inputs, weight, lengths, initial)
    if implementation == "native":
        from seqloom.ops.native.recurrence import gru_native as form
    else:
        form = gru_reference if implementation == "reference" else gru_torch
    return form(inputs, weight, lengths, initial, reverse=reverse, candidate=candidate)


Step = Callable[[Tensor, Tensor], Tensor]
"""(input part x_t, state) -> next state."""


def _rnn_step(weight: Float[Tensor, "H H"], limit: float) -> Step:
    return lambda x, h: F.hardtanh(x + h @ weight.mT, 0.0, limit)


def _gru_step(weight: Float[Tensor, "X H"], candidate: Candidate) -> Step:
    def step(x: Tensor, h: Tensor) -> Tensor:
        (x_z, x_r, x_n), (u_z, u_r, u_n) = x.chunk(3, -1), (h @ weight.mT).chunk(3, -1)
        z, r = (x_z + u_z).sigmoid(), (x_r + u_r).sigmoid()
        n = x_n + r * u_n
        return torch.lerp(h, n.tanh() if candidate == "tanh" else F.hardtanh(n, 0.0, LIMIT), z)

    return step


def rnn_reference(
    inputs: Float[Tensor, "B T H"],
    weight: Float[Tensor, "H H"],
    lengths: Int[Tensor, "B"],
    initial: Float[Tensor, "B H"] | None = None,
    *,
    reverse: bool = False,
    limit: float = LIMIT,
) -> Float[Tensor, "B T H"]:
    """Row by row, step by step."""
    return _row_by_row(lambda u: _rnn_step(u, limit), inputs, weight, lengths, initial, reverse=reverse)


def gru_reference(
    inputs: Float[Tensor, "B T X"],
    weight: Float[Tensor, "X H"],
    lengths: Int[Tensor, "B"],
    initial: Float[Tensor, "B H"] | None = None,
    *,
    reverse: bool = False,
    candidate: Candidate = "tanh",
) -> Float[Tensor, "B T H"]:
    """Row by row, step by step."""
    return _row_by_row(lambda u: _gru_step(u, candidate), inputs, weight, lengths, initial, reverse=reverse)


def rnn_torch(
    inputs: Float[Tensor, "B T H"],
    weight: Float[Tensor, "H H"],
    lengths: Int[Tensor, "B"],
    initial: Float[Tensor, "B H"] | None = None,
    *,
    reverse: bool = False,
    limit: float = LIMIT,
) -> Float[Tensor, "B T H"]:
    return _together(lambda u: _rnn_step(u, limit), inputs, weight, lengths, initial, reverse=reverse)


def gru_torch(
    inputs: Float[Tensor, "B T X"],
    weight: Float[Tensor, "X H"],
    lengths: Int[Tensor, "B"],
    initial: Float[Tensor, "B H"] | None = None,
    *,
    reverse: bool = False,
    candidate: Candidate = "tanh",
) -> Float[Tensor, "B T H"]:
    return _together(lambda u: _gru_step(u, candidate), inputs, weight, lengths, initial, reverse=reverse)


def _row_by_row(
    make: Callable[[Tensor], Step],
    inputs: Float[Tensor, "B T X"],
    weight: Float[Tensor, "X H"],
    lengths: Int[Tensor, "B"],
    initial: Float[Tensor, "B H"] | None,
    *,
    reverse: bool,
) -> Float[Tensor, "B T H"]:
    (rows, steps, _), width = inputs.shape, weight.shape[1]
    x, u, state = _wide(inputs, weight, initial)
    step = make(u)
    states = x.new_zeros(rows, steps, width)
    for row, count in enumerate(lengths.tolist()):
        h = state[row]
        for t in reversed(range(count)) if reverse else range(count):
            h = states[row, t] = step(x[row, t], h)
    return states.to(inputs.dtype)


def _together(
    make: Callable[[Tensor], Step],
    inputs: Float[Tensor, "B T X"],
    weight: Float[Tensor, "X H"],
    lengths: Int[Tensor, "B"],
    initial: Float[Tensor, "B H"] | None,
    *,
    reverse: bool,
) -> Float[Tensor, "B T H"]:
    """All rows at once; one that has ended, or not yet begun, keeps its state."""
    steps = inputs.shape[1]
    x, u, h = _wide(inputs, weight, initial)
    step = make(u)
    inside = (torch.arange(steps, device=inputs.device) < lengths[:, None])[..., None]
    x = x.masked_fill(~inside, 0.0)
    states: list[Tensor] = []
    for t in reversed(range(steps)) if reverse else range(steps):
        h = torch.where(inside[:, t], step(x[:, t], h), h)
        states.append(h)
    if not states:
        return inputs.new_zeros(len(inputs), 0, weight.shape[1])
    return torch.stack(states[::-1] if reverse else states, 1).where(inside, 0.0).to(inputs.dtype)


def _wide(inputs: Tensor, weight: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, weight and first state in FP32 at least."""
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    state = inputs.new_zeros(len(inputs), weight.shape[1], dtype=dtype) if initial is None else initial.to(dtype)
    return inputs.to(dtype), weight.to(dtype), state
