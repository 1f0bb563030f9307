"""Context parallel: one row is spread over several ranks, each with a stretch of its tokens.

Norms, projections, MLPs and experts work token by token and need nothing of each other. What mixes tokens is
re-dealt around its core: from a stretch of the tokens with all heads to all tokens with a part of the heads, and back.

    [B, T/n, n·C]  ->  all-to-all  ->  [B, T, C]        convolution and scan, attention: exactly those of one process

Shared keys and values, or groups of B and C, go to every rank that has a head of theirs. The gate and the norm after
the scan come when the tokens are back at home. A row's balance loss needs sums over the whole row.
Paper: DeepSpeed-Ulysses, arXiv 2309.14509; Megatron's context parallel for Mamba re-deals heads in the same way.
"""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd

from seqloom.core.distributed import Axis
from seqloom.nn.attention import Attention
from seqloom.nn.mamba2 import Mamba2, ScanWeights
from seqloom.nn.moe import Router
from seqloom.nn.state import KVState, MambaState


def spread_rows(model: nn.Module, axis: Axis) -> None:
    """Make a model work on stretches of rows; heads must divide, groups divide or be divided."""
    for module in model.modules():
        if isinstance(module, Mamba2):
            module.mix = partial(_mix, module, axis)  # type: ignore[method-assign]
        elif isinstance(module, Attention):
            module.attend = partial(_attend, module, axis)  # type: ignore[method-assign]
        elif isinstance(module, Router):
            module.row_sum = partial(_row_sum, axis)  # type: ignore[method-assign]
    model.context = axis  # type: ignore[assignment]


def _attend(
    module: Attention,
    axis: Axis,
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G T K"],
    v: Float[Tensor, "B G T K"],
    documents: Int[Tensor, "B T"] | None,
    state: KVState | None,
) -> Float[Tensor, "B H T K"]:
    assert state is None, "rows are spread in training only"
    q, k, v = (_all_tokens(_served(x, axis), axis) for x in (q, k, v))
    y = Attention.attend(module, q, k, v, None if documents is None else axis.join(documents, 1), None)
    return to_tokens(y.transpose(1, 2).flatten(2), axis).unflatten(-1, (-1, module.head_width)).transpose(1, 2)


def _mix(
    module: Mamba2,
    axis: Axis,
    xbc: Float[Tensor, "B T C"],
    dt: Float[Tensor, "B T H"],
    documents: Int[Tensor, "B T"] | None,
    state: MambaState | None,
    weights: ScanWeights,
) -> Float[Tensor, "B T I"]:
    assert state is None, "rows are spread in training only"
    channels = _channels(module, axis.count)  # of every rank, one rank after the other
    own = channels.chunk(axis.count)[axis.index].to(xbc.device)
    heads = axis.mine(torch.arange(module.heads, device=xbc.device), 0)
    mine = ScanWeights(
        weights.taps[own], weights.bias[own], weights.dt_bias[heads], weights.A_log[heads], weights.D[heads]
    )
    xbc, dt = to_heads(xbc[..., channels.to(xbc.device)], axis), to_heads(dt, axis)
    whole = None if documents is None else axis.join(documents, 1)
    return to_tokens(Mamba2.mix(module, xbc, dt, whole, None, mine), axis)


def _channels(module: Mamba2, count: int) -> Tensor:
    """The channels [x | B | C] that each of `count` ranks works on, some of B and C perhaps for several."""
    width = module.state_width
    groups = torch.arange(module.groups)
    if module.groups < count:
        groups = groups.repeat_interleave(count // module.groups)
    shared = (groups[:, None] * width + torch.arange(width)).flatten().chunk(count)
    first, second = module.inner, module.inner + module.groups * width
    blocks = zip(torch.arange(module.inner).chunk(count), shared, strict=True)
    return torch.cat([torch.cat([x, first + b, second + b]) for x, b in blocks])


def _row_sum(axis: Axis, x: Float[Tensor, "B T N"]) -> Float[Tensor, "B N"]:
    """A row's sum over all ranks. What is learned from enters as this rank's part alone: the loss is linear in it, and
    the ranks' losses are summed."""
    part = x.sum(1)
    return part if x.requires_grad else axis.sum_(part.contiguous())


def _served(x: Float[Tensor, "B H T K"], axis: Axis) -> Float[Tensor, "B H T K"]:
    """Repeat heads that are fewer than the ranks, so that each rank gets the one it needs."""
    return x if x.shape[1] >= axis.count else x.repeat_interleave(axis.count // x.shape[1], dim=1)


def _all_tokens(x: Float[Tensor, "B H T K"], axis: Axis) -> Float[Tensor, "B h S K"]:
    width = x.shape[-1]
    return to_heads(x.transpose(1, 2).flatten(2), axis).unflatten(-1, (-1, width)).transpose(1, 2)


def to_heads(x: Float[Tensor, "B T W"], axis: Axis) -> Float[Tensor, "B S C"]:
    """From a stretch of T tokens with all W channels to all S tokens with this rank's C channels."""
    parts = x.unflatten(-1, (axis.count, -1)).permute(2, 0, 1, 3)
    return _exchanged(parts, axis).transpose(0, 1).flatten(1, 2)


def to_tokens(x: Float[Tensor, "B S C"], axis: Axis) -> Float[Tensor, "B T W"]:
    """The way back."""
    parts = x.unflatten(1, (axis.count, -1)).transpose(0, 1)
    return _exchanged(parts, axis).permute(1, 2, 0, 3).flatten(2)


def _exchanged(parts: Float[Tensor, "R B T C"], axis: Axis) -> Float[Tensor, "R B T C"]:
    """Part r goes to rank r; the result's part r came from it."""
    rows = [parts.shape[1]] * axis.count
    sent = parts.flatten(0, 1).contiguous()
    return all_to_all_single_autograd(sent, rows, rows, axis.mesh.get_group()).view_as(parts)
