"""Routed experts whose frozen matrices carry low-rank adapters, without ever forming the adapted matrices.

    y_s = Σ_k w_sk down'_e relu(up'_e x_s)²     with e = chosen_sk,   up' = up + c B A,   down' = down + c B A

As in `experts.py` each expert works on one contiguous slice of its tokens. A product with W + c B A is two thin
products more, so an expert costs what its tokens need and its full-size difference never exists; the frozen matrices
may be stored in a narrower format than the one computed in, and are then widened one expert at a time. Only the
adapters, the tokens and the routing weights get gradients. An adapter of rank 0 is no adapter.
Paper: LoRA, arXiv 2106.09685, section 4.1; experts as in Nemotron 3.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqloom.ops.experts import experts_reference, slices, sum_by_token
from seqloom.ops.kernels import chosen


class LowRank(NamedTuple):
    """The factors of every expert's adapter, whose difference is scale · b a."""

    a: Float[Tensor, "E R In"]
    b: Float[Tensor, "E Out R"]


def adapted_experts(
    x: Float[Tensor, "S I"],
    indices: Int[Tensor, "S K"],
    weights: Float[Tensor, "S K"],
    up: Float[Tensor, "E F I"],
    down: Float[Tensor, "E I F"],
    up_adapter: LowRank,
    down_adapter: LowRank,
    scale: float,
) -> Float[Tensor, "S I"]:
    """Run the chosen experts with the implementation chosen for this device and dtype.

    Args:
        up, down: frozen, in any number format.
        up_adapter, down_adapter: in the dtype of `x`.
        scale: what both adapters are multiplied by.
    """
    factors = (*up_adapter, *down_adapter)
    implementation = chosen("experts", x.device, x.dtype, x, indices, weights, up, down, *factors)
    if implementation == "native":
        from seqloom.ops.native.experts import adapted_native

        return adapted_native(x, indices, weights, up, down, up_adapter, down_adapter, scale)
    form = adapted_reference if implementation == "reference" else adapted_sorted
    return form(x, indices, weights, up, down, up_adapter, down_adapter, scale)


def adapted_reference(
    x: Float[Tensor, "S I"],
    indices: Int[Tensor, "S K"],
    weights: Float[Tensor, "S K"],
    up: Float[Tensor, "E F I"],
    down: Float[Tensor, "E I F"],
    up_adapter: LowRank,
    down_adapter: LowRank,
    scale: float,
) -> Float[Tensor, "S I"]:
    """The plain experts with their adapted matrices, all of them formed."""
    up = up.to(x.dtype) + scale * up_adapter.b @ up_adapter.a
    down = down.to(x.dtype) + scale * down_adapter.b @ down_adapter.a
    return experts_reference(x, indices, weights, up, down)


def adapted_sorted(
    x: Float[Tensor, "S I"],
    indices: Int[Tensor, "S K"],
    weights: Float[Tensor, "S K"],
    up: Float[Tensor, "E F I"],
    down: Float[Tensor, "E I F"],
    up_adapter: LowRank,
    down_adapter: LowRank,
    scale: float,
) -> Float[Tensor, "S I"]:
    """Each expert on a contiguous slice of the tokens sent to it."""
    return _AdaptedExperts.apply(x, indices, weights, up, down, *up_adapter, *down_adapter, scale)


class _AdaptedExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        indices: Tensor,
        weights: Tensor,
        up: Tensor,
        down: Tensor,
        up_a: Tensor,
        up_b: Tensor,
        down_a: Tensor,
        down_b: Tensor,
        scale: float,
    ) -> Tensor:
        order = indices.flatten().argsort(stable=True)
        counts = indices.flatten().bincount(minlength=len(up)).tolist()
        inputs = x[order // indices.shape[1]]
        hidden = []  # per expert, before the activation
        outputs = torch.empty_like(inputs, dtype=torch.promote_types(x.dtype, torch.float32))
        for e, rows in slices(counts):
            before = _through(inputs[rows], up[e], up_a[e], up_b[e], scale)
            outputs[rows] = _through(before.relu().square_(), down[e], down_a[e], down_b[e], scale).to(outputs.dtype)
            if any(ctx.needs_input_grad):
                hidden.append(before)
        slots = torch.empty_like(order)  # where each assignment stands in expert order
        slots[order] = torch.arange(len(order), device=x.device)
        slots = slots.view_as(indices)
        ctx.save_for_backward(x, weights, up, down, up_a, up_b, down_a, down_b, order, slots, *hidden)
        ctx.counts, ctx.scale = counts, scale
        return sum_by_token(outputs, slots, weights).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, up, down, up_a, up_b, down_a, down_b, order, slots, *hidden = ctx.saved_tensors
        scale, dtype = ctx.scale, torch.promote_types(x.dtype, torch.float32)
        tokens = order // slots.shape[1]
        inputs, dy_sorted = x[tokens], dy[tokens]
        weight = weights.flatten()[order, None].to(dtype)
        dweight = torch.empty_like(weight)
        dup_a, dup_b, ddown_a, ddown_b = (torch.zeros_like(factor) for factor in (up_a, up_b, down_a, down_b))
        dinputs = torch.empty_like(inputs, dtype=dtype)
        for (e, rows), before in zip(slices(ctx.counts), hidden, strict=True):
            active = before.relu().to(dtype)
            squared = active * active
            dsquared = _back(dy_sorted[rows], down[e], down_a[e], down_b[e], scale).to(dtype)  # before the weight
            dweight[rows] = (dsquared * squared).sum(1, keepdim=True)
            dhidden = dsquared.mul_(active).mul_(2 * weight[rows]).to(x.dtype)
            weighted = squared.mul_(weight[rows]).to(x.dtype)
            ddown_a[e], ddown_b[e] = _factors(weighted, dy_sorted[rows], down_a[e], down_b[e], scale)
            dup_a[e], dup_b[e] = _factors(inputs[rows], dhidden, up_a[e], up_b[e], scale)
            dinputs[rows] = _back(dhidden, up[e], up_a[e], up_b[e], scale).to(dtype)
        dx = sum_by_token(dinputs, slots, torch.ones_like(weights)).to(x.dtype)
        dweights = dweight[slots.flatten()].view_as(weights).to(weights.dtype)
        return dx, None, dweights, None, None, dup_a, dup_b, ddown_a, ddown_b, None


def _through(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """x (W + c B A)^T."""
    return (x @ weight.to(x.dtype).mT).addmm_(x @ a.mT, b.mT, alpha=scale)


def _back(dy: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """dy (W + c B A)."""
    return (dy @ weight.to(dy.dtype)).addmm_(dy @ b, a, alpha=scale)


def _factors(x: Tensor, dy: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """∂A = c (dy B)^T x and ∂B = c dy^T (x A^T)."""
    return scale * ((dy @ b).mT @ x), scale * (dy.mT @ (x @ a.mT))
