"""Expert parallel: the experts of a layer are dealt out, and tokens travel to those that they chose.

    sort     assignments by expert, so by the rank that has it
    send     counts first, then rows in the latent width             all-to-all
    work     each rank its own experts on all rows that came
    return   the way they came                                       all-to-all
    combine  weighted sum at the token's own rank, in FP32

Gradients take the same way back. An expert's gradient so holds the tokens of all these ranks at once.
Paper: GShard, arXiv 2006.16668; LatentMoE, arXiv 2601.18089 (dispatch in the latent width).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd

from seqloom.core.distributed import Axis
from seqloom.nn.moe import Experts, MoE
from seqloom.numerics.precision import dtype_of
from seqloom.train.parallel.cut import Cut, Cuts


def deal_experts(model: nn.Module, axis: Axis, cuts: Cuts) -> None:
    """Leave every expert layer of a model with this rank's experts; their number must divide."""
    for name, module in list(model.named_modules()):
        if isinstance(module, MoE):
            for leaf in ("up_proj", "down_proj"):
                cuts.make(model, f"{name}.experts", leaf, Cut(axis, 0))
            module.experts = DealtExperts(module.experts, axis)


class DealtExperts(Experts):
    """This rank's experts of a layer, at work for the tokens of all ranks of the axis."""

    def __init__(self, own: Experts, axis: Axis) -> None:
        nn.Module.__init__(self)
        self.up_proj, self.down_proj, self.format = own.up_proj, own.down_proj, own.format
        self.products, self.places = own.products, own.places
        self.axis = axis

    def forward(
        self, x: Float[Tensor, "S I"], chosen: Int[Tensor, "S J"], weights: Float[Tensor, "S J"]
    ) -> Float[Tensor, "S I"]:
        dtype = dtype_of(self.format)
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=len(self.up_proj) * self.axis.count).view(self.axis.count, -1)
        theirs = _exchanged(counts, self.axis)  # per sending rank, rows for each of my experts
        sent, received = counts.sum(1).tolist(), theirs.sum(1).tolist()
        rows = all_to_all_single_autograd(
            x.to(dtype)[order // chosen.shape[1]], received, sent, self.axis.mesh.get_group()
        )
        own = torch.arange(len(self.up_proj), device=x.device).repeat(self.axis.count)
        own = own.repeat_interleave(theirs.flatten())
        worked = super().forward(rows, own[:, None], torch.ones_like(own, dtype=weights.dtype)[:, None])
        back = all_to_all_single_autograd(worked, sent, received, self.axis.mesh.get_group())
        slots = torch.empty_like(order)
        slots[order] = torch.arange(len(order), device=x.device)
        wide = torch.promote_types(x.dtype, torch.float32)
        return (back.to(wide)[slots.view_as(chosen)] * weights[..., None].to(wide)).sum(1).to(dtype)


def _exchanged(counts: Int[Tensor, "R E"], axis: Axis) -> Int[Tensor, "R E"]:
    """Row r goes to rank r; the result's row r came from it."""
    result = torch.empty_like(counts)
    distributed.all_to_all_single(result, counts, group=axis.mesh.get_group())
    return result
