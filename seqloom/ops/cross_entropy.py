"""Cross-entropy of a linear head, without ever holding the logits of all tokens.

    loss = Σ_s [ logsumexp(W h_s) − (W h_s)_target ]   and, where asked for,   + z Σ_s logsumexp(W h_s)²

Tokens pass in chunks: logits, loss and, when a gradient is wanted, ∂h and ∂W in the same visit, so the largest
temporary is one chunk of logits and the backward pass only scales. Tokens without a target are never multiplied.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -100
"""The target of a token that is not to be predicted."""

_LOGITS = 2**21
"""Logits per chunk, unless that makes fewer than `_TOKENS` tokens."""

_TOKENS = 128


def linear_cross_entropy(
    hidden: Float[Tensor, "S D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, "S"]
) -> Float[Tensor, ""]:
    """Summed loss in nats (FP32) of predicting `targets` from the logits `hidden weight^T`.

    Matrix products run in the dtype of `hidden`; softmax and the gradient of `weight` are accumulated in FP32.

    Args:
        targets: token ids; -100 where there is none.
    """
    return linear_cross_entropy_z(hidden, weight, targets, 0.0)[0]


def linear_cross_entropy_z(
    hidden: Float[Tensor, "S D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, "S"], z_weight: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The loss with z_weight · logsumexp² of each target's logits added, and the nats alone, which have no gradient."""
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
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    table = weight.to(hidden.dtype)
    nats = torch.zeros((), dtype=dtype, device=hidden.device)
    penalty = torch.zeros_like(nats)
    dhidden = torch.zeros_like(hidden) if want_dhidden else None
    dweight = torch.zeros_like(weight, dtype=dtype) if want_dweight else None
    rows = (targets != IGNORE).nonzero()[:, 0]
    for part in rows.split(max(_TOKENS, _LOGITS // len(weight))):
        tokens, target = hidden[part], targets[part, None]
        logits = (tokens @ table.mT).to(dtype)
        log_probability = logits.log_softmax(-1)
        nats -= log_probability.gather(1, target).sum()
        normalizer = logits[:, :1] - log_probability[:, :1]  # logsumexp
        if z_weight:
            penalty += z_weight * normalizer.square().sum()
        if dhidden is None and dweight is None:
            continue
        dlogits = log_probability.exp_()
        if z_weight:
            dlogits *= 1 + 2 * z_weight * normalizer
        dlogits.scatter_add_(1, target, torch.full_like(target, -1, dtype=dtype))
        dlogits = dlogits.to(hidden.dtype)
        if dhidden is not None:
            dhidden[part] = dlogits @ table
        if dweight is not None:
            if dtype == tokens.dtype:
                dweight.addmm_(dlogits.mT, tokens)
            else:
                dweight += dlogits.mT @ tokens
    return nats, penalty, dhidden, None if dweight is None else dweight.to(weight.dtype)
