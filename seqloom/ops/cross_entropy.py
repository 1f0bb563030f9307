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

from seqloom.ops.kernels import chosen
from seqloom.ops.linear import add_product, product

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
    implementation = _implementation(hidden, weight, targets)
    if implementation == "reference":
        return linear_cross_entropy_reference(hidden, weight, targets, z_weight)
    if implementation == "triton":
        from seqloom.ops.triton.cross_entropy import linear_cross_entropy_triton

        return linear_cross_entropy_triton(hidden, weight, targets, z_weight)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, targets, z_weight)
    nats, penalty, _, _ = _visit(hidden, weight, targets, z_weight, False, False)
    return nats + penalty, nats


def linear_cross_entropy_reference(
    hidden: Float[Tensor, "S D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, "S"], z_weight: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """As the formula reads, with all logits at once; arguments and results as in `linear_cross_entropy_z`."""
    learned = targets != IGNORE
    logits = (hidden[learned] @ weight.to(hidden.dtype).mT).to(torch.promote_types(hidden.dtype, torch.float32))
    normalizer = logits.logsumexp(-1)
    nats = (normalizer - logits.gather(1, targets[learned, None])[:, 0]).sum()
    return nats + z_weight * normalizer.square().sum(), nats.detach()


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
    if _implementation(hidden, weight, targets) == "native":
        from seqloom.ops.native.cross_entropy import softmax_native as form
    else:
        form = _softmax_torch
    rows = (targets != IGNORE).nonzero()[:, 0]
    for part in rows.split(max(_TOKENS, _LOGITS // len(weight))):
        tokens = hidden[part]
        logits = product(tokens, table.mT, hidden.dtype)
        more, more_penalty, dlogits = form(logits, targets[part], z_weight, want_dhidden or want_dweight)
        nats += more
        penalty += more_penalty
        if dlogits is None:
            continue
        if dhidden is not None:
            dhidden[part] = product(dlogits, table, hidden.dtype)
        if dweight is not None:
            add_product(dweight, dlogits.mT, tokens)
    return nats, penalty, dhidden, None if dweight is None else dweight.to(weight.dtype)


def _softmax_torch(
    logits: Float[Tensor, "S V"], targets: Int[Tensor, "S"], z_weight: float, want_gradient: bool
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, "S V"] | None]:
    """Nats, z-loss, and the gradient of their sum by the logits where wanted."""
    dtype, hit = logits.dtype, targets[:, None]
    log_probability = logits.to(torch.promote_types(dtype, torch.float32)).log_softmax(-1)
    normalizer = logits[:, :1] - log_probability[:, :1]  # logsumexp
    nats, penalty = -log_probability.gather(1, hit).sum(), z_weight * normalizer.square().sum()
    if not want_gradient:
        return nats, penalty, None
    dlogits = log_probability.exp_()
    if z_weight:
        dlogits *= 1 + 2 * z_weight * normalizer
    dlogits.scatter_add_(1, hit, torch.full_like(hit, -1, dtype=dlogits.dtype))
    return nats, penalty, dlogits.to(dtype)


def _implementation(hidden: Tensor, weight: Tensor, targets: Tensor) -> str:
    return chosen("cross_entropy", hidden.device, hidden.dtype, hidden, weight, targets)
