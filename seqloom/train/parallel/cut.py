"""How one full tensor is dealt out along one axis of the grid, and put together again.

    taken = full[order] in `count` equal pieces, of which this rank keeps one          order: None keeps it as it is

An order is needed where a matrix holds several things one below the other and every rank is to get its share of each,
as the rows [z | x | B | C | dt] of Mamba's input projection.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from seqloom.core.distributed import Axis
from seqloom.numerics.place import Shared


@dataclass(frozen=True)
class Cut:
    """One way to deal out a tensor.

    Attributes:
        axis: the ranks that share it.
        dim: the dimension that is cut.
        order: the full tensor's indices in the order in which they are dealt out.
    """

    axis: Axis
    dim: int
    order: Tensor | None = None

    def take(self, full: Tensor) -> Tensor:
        """This rank's piece, in memory of its own."""
        if self.order is not None:
            full = full.index_select(self.dim, self.order.to(full.device))
        return self.axis.mine(full, self.dim).clone(memory_format=torch.contiguous_format)

    def join(self, piece: Tensor) -> Tensor:
        """The full tensor from all ranks' pieces; collective."""
        full = DTensor.from_local(piece, self.axis.mesh, [Shard(self.dim)], run_check=False).full_tensor()
        if self.order is None:
            return full
        return full.index_select(self.dim, self.order.argsort().to(full.device))


def deal(sizes: list[int], count: int) -> Tensor:
    """The order that gives each of `count` ranks an equal stretch of every block of these sizes."""
    pieces: list[list[Tensor]] = [[] for _ in range(count)]
    start = 0
    for size in sizes:
        for rank, stretch in enumerate(torch.arange(start, start + size).chunk(count)):
            pieces[rank].append(stretch)
        start += size
    return torch.cat([stretch for rank in pieces for stretch in rank])


class Cuts:
    """The cuts of a model by parameter name, in the order in which they were made."""

    def __init__(self) -> None:
        self._of: dict[str, list[Cut]] = {}

    def make(self, model: nn.Module, owner: str, leaf: str, cut: Cut) -> None:
        """Leave this rank's piece in the place of a parameter of the module `owner`."""
        module: Any = model.get_submodule(owner)
        full = getattr(module, leaf)
        place, dim = getattr(module, "places", {}).get(leaf), cut.dim - (full.ndim - 2)
        if place is not None and dim >= 0:  # and not whole matrices of a stack
            place.shared = Shared(cut.axis, dim)
        setattr(module, leaf, nn.Parameter(cut.take(full.detach()), requires_grad=full.requires_grad))
        self._of.setdefault(f"{owner}.{leaf}" if owner else leaf, []).append(cut)

    def of(self, name: str) -> list[Cut]:
        """The cuts of a parameter; none if every rank has all of it."""
        return self._of.get(name, [])
