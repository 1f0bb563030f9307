"""Connectionist temporal classification in C++: costs by the forward recursion, gradients by the backward one.

Neither the softmax nor its logarithm is ever stored. Between the two passes stay the states of the forward recursion
and two numbers of every frame; the gradient leaves the second pass with the factor of its utterance already in it.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqloom.ops.native.call import POINTER, SIZE, THREADS, kernel, pointer, suffix, threads

_BATCH = (POINTER, SIZE, SIZE, POINTER, POINTER, POINTER, *[SIZE] * 6)
_TYPES = {"forward": (*_BATCH, *[POINTER] * 3, THREADS), "backward": (*_BATCH, *[POINTER] * 4, THREADS)}
_WIDEST = 16
"""Numbers of the widest vector."""


def ctc_loss_native(
    logits: Float[Tensor, "B T V"],
    lengths: Int[Tensor, "B"],
    targets: Int[Tensor, "B L"],
    target_lengths: Int[Tensor, "B"],
    blank: int = 0,
) -> Float[Tensor, "B"]:
    """Arguments and results as in `ops.ctc.ctc_loss`, for logits in FP32 or BF16."""
    (rows, frames, classes), longest = logits.shape, targets.shape[1]
    assert lengths.shape == target_lengths.shape == targets.shape[:1] == (rows,)
    assert 0 <= blank < classes, (blank, classes)
    assert bool(((lengths >= 0) & (lengths <= frames)).all()), "a row is longer than there are frames"
    assert bool(((target_lengths >= 0) & (target_lengths <= longest)).all()), "a target is longer than its row"
    used = torch.arange(longest) < target_lengths[:, None]
    wrong = (targets < 0) | (targets >= classes) | (targets == blank)
    assert not bool((wrong & used).any()), "a target that is no label"
    lengths, targets, target_lengths = (t.long().contiguous() for t in (lengths, targets, target_lengths))
    ready = _Ready(lengths, targets, target_lengths, blank)
    if torch.is_grad_enabled() and logits.requires_grad:
        return _NativeCTC.apply(logits, *ready)
    return _forward(logits, ready, None)[0]


class _Ready(NamedTuple):
    """Everything but the logits, as the kernels read it."""

    lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    blank: int

    def states(self) -> int:
        """Numbers of a frame that are kept, whatever the width of a vector: both kinds of states, and a gap."""
        return 2 * _WIDEST * (self.targets.shape[1] // _WIDEST + 1) + _WIDEST


class _NativeCTC(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, *ready: Any) -> Tensor:
        ctx.ready = _Ready(*ready)
        states = torch.empty(*logits.shape[:2], ctx.ready.states(), dtype=torch.float32)
        nats, norms = _forward(logits, ctx.ready, states)
        ctx.save_for_backward(logits, norms, states)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dnats: Tensor) -> tuple[Tensor | None, ...]:
        logits, norms, states = ctx.saved_tensors
        dlogits = torch.empty(logits.shape, dtype=logits.dtype)
        dnats = dnats.contiguous()
        _call("backward", logits, ctx.ready, dnats, norms, states, dlogits)
        return dlogits, None, None, None, None


def _forward(
    logits: Float[Tensor, "B T V"], ready: _Ready, states: Tensor | None
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B T 2"]]:
    """Costs, and the numbers that make a softmax of every frame."""
    nats = torch.empty(len(logits), dtype=torch.float32)
    norms = torch.empty(*logits.shape[:2], 2, dtype=torch.float32)
    _call("forward", logits, ready, nats, norms, states)
    return nats, norms


def _call(name: str, logits: Tensor, ready: _Ready, *tensors: Tensor | None) -> None:
    logits = logits if logits.stride(2) == 1 or logits.shape[2] == 1 else logits.contiguous()
    kernel(f"ctc_{name}_{suffix(logits.dtype)}", *_TYPES[name])(
        pointer(logits), *logits.stride()[:2], *map(pointer, ready[:3]), *logits.shape, ready.targets.shape[1],
        ready.blank, ready.states(), *map(pointer, tensors), threads(),
    )  # fmt: skip
