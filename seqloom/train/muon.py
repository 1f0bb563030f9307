"""Muon: momentum whose every matrix is replaced by its nearest orthogonal one before it is applied.

    M ← μM + (1 - μ)G;   U = (1 - μ)G + μM (Nesterov);   W ← (1 - ηλ)W - η √max(1, rows/columns) · orthogonal(U)

orthogonal(U) drives the singular values of U near 1 and leaves its singular vectors alone (see ops.orthogonalise).
Every update then has the spectral norm that fits its shape, so one rate serves all widths.

A parameter [..., rows, columns] is a stack of independent matrices (experts). On a CPU each matrix goes through its
whole step at a stretch, in C++. Elsewhere all matrices of one shape in a model, or of its transpose, are orthogonalised
in one batch: small models would otherwise spend their time in calls.
A matrix whose pieces lie on several ranks is put together first, one at a time, and each rank applies its piece.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", with its scale rule; decoupled
decay as in "Muon is scalable for LLM training", arXiv 2502.16982.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.ops.kernels import chosen
from seqloom.ops.orthogonalise import COEFFICIENTS, ITERATIONS, orthogonalise


class Dealt(NamedTuple):
    """The way from this rank's piece of a parameter to the whole, which all ranks take together, and back."""

    join: Callable[[Tensor], Tensor]
    take: Callable[[Tensor], Tensor]


class Muon(torch.optim.Optimizer):
    """Muon over hidden matrices; one-dimensional parameters do not belong here."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        dealt: Mapping[Tensor, Dealt] | None = None,
    ) -> None:
        """
        Args:
            dealt: parameters of which this rank holds parts of matrices only.
        """
        self._dealt = dealt or {}
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        assert all(p.ndim >= 2 for group in self.param_groups for p in group["params"])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step with the gradients at hand; parameters without one are left alone."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            plain: list[Tensor] = []
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p in self._dealt:
                    self._step_dealt(p, group, self._dealt[p])
                elif _plain(p):
                    plain.append(p)
                else:
                    alike[tuple(sorted(p.shape[-2:]))].append(p)
            for params in alike.values():
                self._step_alike(params, group)
            if plain:
                self._step_plain(plain, group)

    def _step_alike(self, params: list[Tensor], group: dict[str, Any]) -> None:
        stacks = [_wide(self._momentum(p, group["momentum"])) for p in params]
        updates = orthogonalise(torch.cat(stacks)).split([len(stack) for stack in stacks])
        for p, update in zip(params, updates, strict=True):
            rows, columns = p.shape[-2:]
            self._apply(p, (update.mT if rows > columns else update).reshape(p.shape), rows, columns, group)

    def _step_plain(self, params: list[Tensor], group: dict[str, Any]) -> None:
        from seqloom.ops.native.orthogonalise import muon_step_native

        tensors = [(p, p.grad, self._remembered(p)) for p in params if p.grad is not None]
        rates = [_rate(p.shape[-2], p.shape[-1], group) for p in params]
        muon_step_native(tensors, group["momentum"], _keep(group), rates, COEFFICIENTS, ITERATIONS)

    def _step_dealt(self, p: Tensor, group: dict[str, Any], dealt: Dealt) -> None:
        whole = dealt.join(self._momentum(p, group["momentum"]))
        rows, columns = whole.shape[-2:]
        update = orthogonalise(_wide(whole))
        update = (update.mT if rows > columns else update).reshape(whole.shape)
        self._apply(p, dealt.take(update), rows, columns, group)

    @staticmethod
    def _apply(p: Tensor, update: Tensor, rows: int, columns: int, group: dict[str, Any]) -> None:
        p.mul_(_keep(group))
        p.add_(update.to(p.dtype), alpha=-_rate(rows, columns, group))

    def _momentum(self, p: Tensor, momentum: float) -> Tensor:
        assert p.grad is not None
        remembered = self._remembered(p).lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(remembered, momentum)

    def _remembered(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        return state["momentum"]


def _keep(group: dict[str, Any]) -> float:
    """What is left of a weight after its decay."""
    return 1 - group["lr"] * group["weight_decay"]


def _rate(rows: int, columns: int, group: dict[str, Any]) -> float:
    return group["lr"] * math.sqrt(max(1.0, rows / columns))


def _plain(p: Tensor) -> bool:
    """Whether the step in C++ serves a parameter."""
    if p.dtype != torch.float32 or not p.is_contiguous():
        return False
    return chosen("orthogonalise", p.device, p.dtype, p, p.grad) == "native"


def _wide(update: Tensor) -> Float[Tensor, "N R C"]:
    """A parameter's update as a stack of matrices with R ≤ C: the short side decides the cost."""
    matrices = update.reshape(-1, *update.shape[-2:])
    return matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
