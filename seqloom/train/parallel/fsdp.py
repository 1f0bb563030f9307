"""Data parallel: every parameter, its gradient and its optimizer state are dealt out over all ranks of `batch`.

A layer's parameters are put together just before its forward and backward pass and let go after them; gradients are
summed, never averaged, since the loop divides once by the units of all ranks. The unit is one layer; embedding, head
and what else a model has at its top stay together from the forward to the backward pass.
Paper: PyTorch FSDP, arXiv 2304.11277; this is its second form, `fully_shard`, one DTensor for each parameter.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from seqloom.core.distributed import Ranks
from seqloom.nn.layer import Layer
from seqloom.nn.mtp import MtpBlock
from seqloom.numerics.place import places
from seqloom.train.parallel.expert import DealtExperts


def shard(model: nn.Module, ranks: Ranks) -> None:
    """Deal out the parameters of a model; experts that are dealt out already are shared by their twins only."""
    if ranks.batch.count == 1:
        return
    kept: set[nn.Parameter] = set()
    for module in model.modules():
        if isinstance(module, DealtExperts):
            if ranks.twins.count > 1:
                fully_shard(module, mesh=ranks.twins.mesh)
            else:
                kept |= set(module.parameters())
    for module, place in places(model).values():
        place.keeps = set(module.parameters()) <= kept  # quantized weights would take what dealing them out saves
    for unit in list(_units(model)):
        fully_shard(unit, mesh=ranks.batch.mesh, ignored_params=kept)
    fully_shard(model, mesh=ranks.batch.mesh, reshard_after_forward=False, ignored_params=kept)
    for method in getattr(model, "entered_by", ()):
        register_fsdp_forward_method(model, method)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def let_go(model: nn.Module) -> None:
    """Back to the shards, after a forward pass that no backward pass follows."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def own(tensor: Tensor) -> Tensor:
    """This rank's piece of a parameter or gradient, as a plain tensor that shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _units(model: nn.Module) -> Iterator[nn.Module]:
    """Layers, and prediction blocks as a whole, since a block reaches into its layers."""
    for child in model.children():
        if isinstance(child, Layer | MtpBlock):
            yield child
        else:
            yield from _units(child)
