"""A model spread over the grid, and its way back into one piece.

    whole model  ->  expert, tensor, context  ->  data           each rank keeps pieces of some or all parameters
    pieces       ->  one full tensor after the other, on every rank; the main rank keeps it

Every rank begins with the same whole model, drawn or read as one process would, and gives the rest away. Checkpoints
are written from whole tensors in the public layout, and read whole and cut, so any grid can go on from any other.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from seqloom.core.checkpoint.tensor_folder import TensorFolder
from seqloom.core.distributed import Ranks
from seqloom.train.parallel.context import spread_rows
from seqloom.train.parallel.cut import Cuts
from seqloom.train.parallel.expert import deal_experts
from seqloom.train.parallel.fsdp import let_go, own, shard
from seqloom.train.parallel.tensor import cut_mixers


class Spread:
    """What this rank holds of a model.

    Attributes:
        size: numbers that are trained, over all ranks.
        pieces: this rank's pieces of the trained parameters by name, as plain tensors that share their memory.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, device: torch.device) -> None:
        """Leave a whole model with this rank's pieces, on its device."""
        self._ranks, self._cuts = ranks, Cuts()
        self._empty = _without_memory(model)
        self.size = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        if ranks.expert.count > 1:
            deal_experts(model, ranks.expert, self._cuts)
        if ranks.tensor.count > 1:
            cut_mixers(model, ranks.tensor, self._cuts)
        if ranks.context.count > 1:
            spread_rows(model, ranks.context)
        shard(model, ranks)
        self._model = model.to(device)
        self._parameters = dict(model.named_parameters())
        self.pieces = {name: own(p) for name, p in self._parameters.items() if p.requires_grad}

    def join(self, name: str, piece: Tensor) -> Tensor:
        """A full tensor that is dealt out as the parameter `name` is; collective."""
        parameter = self._parameters[name]
        if isinstance(parameter, DTensor):
            piece = DTensor.from_local(
                piece,
                parameter.device_mesh,
                parameter.placements,
                run_check=False,
                shape=parameter.shape,
                stride=parameter.stride(),
            ).full_tensor()
        for cut in reversed(self._cuts.of(name)):
            piece = cut.join(piece)
        return piece

    def take(self, name: str, full: Tensor) -> Tensor:
        """This rank's piece of such a tensor."""
        for cut in self._cuts.of(name):
            full = cut.take(full)
        parameter = self._parameters[name]
        if isinstance(parameter, DTensor):
            pieces = full.chunk(parameter.device_mesh.size())
            index = parameter.device_mesh.get_local_rank()
            return pieces[index] if index < len(pieces) else full[:0]
        return full

    def whole_matrices(self, name: str) -> bool:
        """Whether a piece of a stack of matrices holds whole matrices of it."""
        dims = [cut.dim for cut in self._cuts.of(name)]
        if isinstance(self._parameters[name], DTensor):
            dims.append(0)
        return all(dim < self._parameters[name].ndim - 2 for dim in dims)

    def hand_over(self) -> None:
        """Give each piece its piece of the gradient."""
        for name, piece in self.pieces.items():
            gradient = self._parameters[name].grad
            piece.grad = None if gradient is None else own(gradient)

    def forget_gradients(self) -> None:
        let_go(self._model)  # else a forward pass without a backward pass leaves other parameters in their place
        self._model.zero_grad(set_to_none=True)
        for piece in self.pieces.values():
            piece.grad = None

    def norm(self) -> float:
        """The norm of all gradients that were handed over, on all ranks; collective."""
        tensor, squares = self._ranks.tensor, list[Tensor]()
        for name, piece in self.pieces.items():
            if piece.grad is not None:
                copies = 1 if any(cut.axis is tensor for cut in self._cuts.of(name)) else tensor.count
                squares.append(torch.linalg.vector_norm(piece.grad, dtype=torch.float64).square() / copies)
        square = torch.stack(squares).sum()
        distributed.all_reduce(square)
        return float(square.sqrt())

    @torch.no_grad()
    def gather(self, optimizer: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
        """The whole model and optimizer state, in CPU memory of the main rank; collective.

        Returns:
            of use on the main rank only; elsewhere they hold nothing.
        """
        model = copy.deepcopy(self._empty)
        for name, parameter in self._parameters.items():
            if self._is_stored(name):
                full = self.join(name, own(parameter.detach()))
                if self._ranks.main:
                    _put(model, name, nn.Parameter(full.cpu(), requires_grad=parameter.requires_grad))
        state: dict[str, Tensor] = {}
        for name, piece in optimizer.items():
            full = self.join(name.rpartition(".")[0], piece) if piece.ndim else piece
            if self._ranks.main:
                state[name] = full.to("cpu", copy=True)
        if self._ranks.main:
            for name, buffer in self._model.named_buffers():
                _put(model, name, buffer.to("cpu", copy=True))
        return model, state

    @torch.no_grad()
    def read(self, folder: Path) -> None:
        """Take this rank's pieces of the weights of a folder."""
        let_go(self._model)
        model: Any = copy.deepcopy(self._empty)
        for name, parameter in list(model.named_parameters()):
            if self._is_stored(name):
                empty = torch.empty_like(parameter, device="cpu")
                _put(model, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
        for name, buffer in list(model.named_buffers()):
            _put(model, name, torch.zeros_like(buffer, device="cpu"))
        model.read_folder(folder)
        for name, full in model.named_parameters():
            if not full.is_meta:
                own(self._parameters[name]).copy_(self.take(name, full.detach()))
        buffers = dict(self._model.named_buffers())
        for name, full in model.named_buffers():
            buffers[name].copy_(full)

    def _is_stored(self, name: str) -> bool:
        """Whether a parameter is part of the checkpoints; of a model with adapters only those are."""
        return self._parameters[name].requires_grad or getattr(self._empty, "adapter", None) is None

    def optimizer_pieces(self, folder: Path, stem: str) -> Iterator[tuple[str, Tensor]]:
        """This rank's pieces of a stored optimizer state, one tensor after the other."""
        stored = TensorFolder(folder, stem)
        for name in stored.entries:
            full, parameter = stored.read(name), name.rpartition(".")[0]
            known = full.ndim > 0 and parameter in self._parameters
            yield name, self.take(parameter, full) if known else full


def _without_memory(model: nn.Module) -> nn.Module:
    """A copy of a model on the meta device."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    memo |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    return copy.deepcopy(model, memo)


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(leaf, tensor)
    else:
        module.register_buffer(leaf, tensor, persistent=leaf not in module._non_persistent_buffers_set)
