"""Cross-entropy of a linear head on a GPU: torch multiplies, one kernel does all the rest of a chunk of logits.

A program owns a token. It reads its logits once for their log-sum-exp, kept as a running maximum and a running sum, and
once more to turn them into the gradient in the very same memory. So a chunk is read twice and written once, and the
logits of all tokens never exist together.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqloom.ops.triton.tiles import launch, power_of_two

_IGNORE = -100

_LOGITS = 2**27
"""Logits per chunk: large products, at 256 MiB in BF16."""


def linear_cross_entropy_triton(
    hidden: Float[Tensor, "S D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, "S"], z_weight: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The loss with its z-loss, and the nats alone; as `seqloom.ops.cross_entropy.linear_cross_entropy_z`."""
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, targets, z_weight)
    nats, penalty, _, _ = _visit(hidden, weight, targets, z_weight, False, False)
    return nats + penalty, nats


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, z_weight: float) -> tuple[Tensor, Tensor]:
        nats, penalty, dhidden, dweight = _visit(hidden, weight, targets, z_weight, *ctx.needs_input_grad[:2])
        ctx.save_for_backward(dhidden, dweight)
        ctx.mark_non_differentiable(nats)
        return nats + penalty, nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        return *(None if g is None else (g.to(dloss.dtype) * dloss).to(g.dtype) for g in gradients), None, None


def _visit(
    hidden: Float[Tensor, "S D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, "S"],
    z_weight: float,
    want_dhidden: bool,
    want_dweight: bool,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, "S D"] | None, Float[Tensor, "V D"] | None]:
    """Nats, z-loss, and the gradients of their sum by `hidden` and `weight` where wanted."""
    table = weight.to(hidden.dtype)
    dhidden = torch.zeros_like(hidden) if want_dhidden else None
    dweight = torch.zeros_like(weight, dtype=torch.float32) if want_dweight else None
    rows = (targets != _IGNORE).nonzero()[:, 0]
    nats, penalty = torch.zeros(2, len(rows), device=hidden.device)
    first = 0
    for part in rows.split(max(1, _LOGITS // len(weight))):
        tokens = hidden[part]
        logits = tokens @ table.mT
        span = slice(first, first + len(part))
        first += len(part)
        cross_entropy_rows(logits, targets[part], nats[span], penalty[span], z_weight, want_dhidden or want_dweight)
        if dhidden is not None:
            dhidden[part] = logits @ table
        if dweight is not None:
            if dweight.dtype == tokens.dtype:
                dweight.addmm_(logits.mT, tokens)
            else:
                dweight += logits.mT @ tokens
    return nats.sum(), penalty.sum(), dhidden, None if dweight is None else dweight.to(weight.dtype)


def cross_entropy_rows(
    logits: Float[Tensor, "S V"],
    targets: Int[Tensor, "S"],
    nats: Float[Tensor, "S"],
    penalty: Float[Tensor, "S"],
    z_weight: float,
    gradient: bool,
) -> None:
    """Write nats and z-loss of every token, and the gradient of their sum over the logits where it is wanted."""
    launch(
        _rows, (len(logits),), logits, targets, nats, penalty, logits.shape[1], logits.stride(0), z_weight,
        BLOCK=min(4096, power_of_two(logits.shape[1])), GRADIENT=gradient, warps=8,
    )  # fmt: skip


@triton.jit
@no_type_check
def _rows(logits, targets, nats, penalty, V, row_stride, z_weight, BLOCK: tl.constexpr, GRADIENT: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    target = tl.load(targets + row)
    wanted = tl.load(logits + target).to(tl.float32)
    column = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], -3.4e38, tl.float32)  # of every lane, so that only the end compares across them
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, V, BLOCK):
        value = tl.load(logits + first + column, mask=first + column < V, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(largest, value)
        total = total * tl.exp(largest - higher) + tl.exp(value - higher)
        largest = higher
    top = tl.max(largest, 0)
    normalizer = top + tl.log(tl.sum(total * tl.exp(largest - top), 0))
    tl.store(nats + row, normalizer - wanted)
    tl.store(penalty + row, z_weight * normalizer * normalizer)
    if GRADIENT:
        slope = 1 + 2 * z_weight * normalizer
        for first in range(0, V, BLOCK):
            place = logits + first + column
            value = tl.load(place, mask=first + column < V, other=float("-inf")).to(tl.float32)
            dlogit = tl.exp(value - normalizer) * slope - tl.where(first + column == target, 1.0, 0.0)
            tl.store(place, dlogit.to(logits.dtype.element_ty), mask=first + column < V)
