"""Routed experts: every token goes through the squared-ReLU MLPs that its router chose.

    y_s = Σ_k w_sk down_e relu(up_e x_s)²     with e = chosen_sk

The fast form sorts the assignments by expert, so that each expert that received tokens works on one contiguous slice:
two matrix products forward, four backward, and no loop over tokens. It keeps the hidden pre-activations for the
backward pass. Since  ∂w_sk = relu(up_e x_s)²·(down_e^T ∂y_s),  the experts' outputs are not needed there.
For packed matrices, and where invariance is asked for, each expert multiplies its rows by the products of `ops.linear`
and `ops.packed_linear`, and a token's outputs are added in the order of its choices.
Paper: Nemotron 3 Nano and Super, MoE sections (non-gated squared ReLU; weights applied in FP32).
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from seqloom.ops.kernels import chosen, is_invariant
from seqloom.ops.linear import linear_torch
from seqloom.ops.packed_linear import PackedWeight, packed_linear_torch

_FEW = 256
"""Assignments of a call for which copies of their experts' matrices are small beside a model."""


def experts(
    x: Float[Tensor, "S I"],
    indices: Int[Tensor, "S K"],
    weights: Float[Tensor, "S K"],
    up: Float[Tensor, "E F I"] | PackedWeight,
    down: Float[Tensor, "E I F"] | PackedWeight,
) -> Float[Tensor, "S I"]:
    """Run the chosen experts with the implementation chosen for this device and dtype.

    Args:
        indices: the K experts of each token.
        weights: what each of them counts, applied to its output in FP32.
        up, down: in any format; plain ones are cast to that of `x`. Packed ones have no gradient.
    """
    tensors = [given for given in (x, indices, weights, up, down) if isinstance(given, Tensor)]
    implementation = chosen("experts", x.device, x.dtype, *tensors)
    learning = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if isinstance(up, PackedWeight) or isinstance(down, PackedWeight) or (is_invariant() and not learning):
        if implementation == "native" and not learning:
            from seqloom.ops.native.experts_stored import experts_stored

            return experts_stored(x, indices, weights, up, down)
        return experts_in_order(x, indices, weights, up, down)
    up, down = up.to(x.dtype), down.to(x.dtype)
    if implementation == "native":
        from seqloom.ops.native.experts import experts_native as form
    elif implementation == "triton":
        from seqloom.ops.triton.experts import experts_triton as form
    elif implementation == "reference":
        form = experts_reference
    else:
        form = experts_sorted if x.is_cpu or learning or indices.numel() > _FEW else experts_gathered
    return form(x, indices, weights, up, down)


def experts_reference(
    x: Float[Tensor, "S I"],
    indices: Int[Tensor, "S K"],
    weights: Float[Tensor, "S K"],
    up: Float[Tensor, "E F I"],
    down: Float[Tensor, "E I F"],
) -> Float[Tensor, "S I"]:
    """Every expert on every token, weighted by zero where it was not chosen."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    total = torch.zeros_like(x, dtype=dtype)
    for e in range(len(up)):
        weight = torch.where(indices == e, weights, 0.0).sum(1, keepdim=True)
        total = total + weight * (F.relu(x @ up[e].mT).square() @ down[e].mT).to(dtype)
    return total.to(x.dtype)


def experts_sorted(
    x: Float[Tensor, "S I"],
    indices: Int[Tensor, "S K"],
    weights: Float[Tensor, "S K"],
    up: Float[Tensor, "E F I"],
    down: Float[Tensor, "E I F"],
) -> Float[Tensor, "S I"]:
    """Each expert on a contiguous slice of the tokens sent to it."""
    return _SortedExperts.apply(x, indices, weights, up, down)


def experts_gathered(
    x: Float[Tensor, "S I"],
    indices: Int[Tensor, "S K"],
    weights: Float[Tensor, "S K"],
    up: Float[Tensor, "E F I"],
    down: Float[Tensor, "E I F"],
) -> Float[Tensor, "S I"]:
    """Every assignment by a copy of its expert's matrices: for few tokens on a GPU, which is never asked for counts."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    hidden = (up[indices] @ x[:, None, :, None]).relu().square()
    outputs = (down[indices] @ hidden)[..., 0].to(dtype)
    return (outputs * weights[..., None].to(dtype)).sum(1).to(x.dtype)


def experts_in_order(
    x: Float[Tensor, "S I"],
    indices: Int[Tensor, "S K"],
    weights: Float[Tensor, "S K"],
    up: Float[Tensor, "E F I"] | PackedWeight,
    down: Float[Tensor, "E I F"] | PackedWeight,
) -> Float[Tensor, "S I"]:
    """Expert after expert by the products of single matrices, then choice after choice of every token."""
    outputs = x.new_empty(*indices.shape, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    for expert in indices.unique().tolist():
        tokens, places = (indices == expert).nonzero(as_tuple=True)
        active = _multiply(x[tokens], up, expert).relu().square()
        outputs[tokens, places] = _multiply(active, down, expert).to(outputs.dtype)
    total = torch.zeros_like(x, dtype=outputs.dtype)
    for place in range(indices.shape[1]):
        total = total + weights[:, place, None].to(total.dtype) * outputs[:, place]
    return total.to(x.dtype)


def _multiply(x: Tensor, stack: Tensor | PackedWeight, expert: int) -> Tensor:
    if isinstance(stack, PackedWeight):
        return packed_linear_torch(x, stack.matrix(expert))
    return linear_torch(x, stack[expert])


class _SortedExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, weights: Tensor, up: Tensor, down: Tensor) -> Tensor:
        order = indices.flatten().argsort(stable=True)
        counts = indices.flatten().bincount(minlength=len(up)).tolist()
        inputs = x[order // indices.shape[1]]
        hidden = []  # per expert, before the activation
        outputs = torch.empty_like(inputs, dtype=torch.promote_types(x.dtype, torch.float32))
        for expert, rows in slices(counts):
            before = inputs[rows] @ up[expert].mT
            outputs[rows] = before.relu().square_() @ down[expert].mT
            if any(ctx.needs_input_grad):
                hidden.append(before)
        slots = torch.empty_like(order)  # where each assignment stands in expert order
        slots[order] = torch.arange(len(order), device=x.device)
        slots = slots.view_as(indices)
        ctx.save_for_backward(x, weights, up, down, order, slots, *hidden)
        ctx.counts = counts
        return sum_by_token(outputs, slots, weights).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, up, down, order, slots, *hidden = ctx.saved_tensors
        tokens = order // slots.shape[1]
        inputs, dy_sorted = x[tokens], dy[tokens]
        weight = weights.flatten()[order, None].to(torch.promote_types(x.dtype, torch.float32))
        dup, ddown, dweight = torch.empty_like(up), torch.empty_like(down), torch.empty_like(weight)
        idle = [expert for expert, count in enumerate(ctx.counts) if count == 0]
        dup[idle] = ddown[idle] = 0
        dinputs = torch.empty_like(inputs, dtype=weight.dtype)
        for (expert, rows), before in zip(slices(ctx.counts), hidden, strict=True):
            active = before.relu().to(weight.dtype)
            squared = active * active
            dsquared = (dy_sorted[rows] @ down[expert]).to(weight.dtype)  # before the weight
            dweight[rows] = (dsquared * squared).sum(1, keepdim=True)
            torch.mm(dy_sorted[rows].mT, squared.mul_(weight[rows]).to(x.dtype), out=ddown[expert])
            dhidden = dsquared.mul_(active).mul_(2 * weight[rows]).to(x.dtype)
            torch.mm(dhidden.mT, inputs[rows], out=dup[expert])
            dinputs[rows] = dhidden @ up[expert]
        dx = sum_by_token(dinputs, slots, torch.ones_like(weights))
        return dx.to(x.dtype), None, dweight[slots.flatten()].view_as(weights).to(weights.dtype), dup, ddown


def slices(counts: list[int]) -> list[tuple[int, slice]]:
    """Experts that received tokens, with their rows in expert order."""
    result, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            result.append((expert, slice(start, start + count)))
        start += count
    return result


def sum_by_token(
    rows: Float[Tensor, "A I"], slots: Int[Tensor, "S K"], weights: Float[Tensor, "S K"]
) -> Float[Tensor, "S I"]:
    """Σ_k weight_sk rows[slot_sk] in the dtype of the rows."""
    return F.embedding_bag(slots, rows, mode="sum", per_sample_weights=weights.to(rows.dtype))
