"""Results that are cheaper to make again than to keep until the backward pass.

A norm, a squared ReLU or a short convolution reads and writes memory once, yet the product that comes next would keep
its result for the gradient of a weight. Inside `recomputing()` autograd keeps instead what such a result was made of,
which is kept anyway, and makes it again when it is first asked for: the same function of the same numbers, so the same
bits. It lives until the last that asked has gone back. Small results are kept after all: making them again is more
calls than work.

Layers that are recomputed as a whole (`torch.utils.checkpoint`) keep nothing of this, inside or outside.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

SMALL = 4 << 20
"""Bytes up to which a result is kept; without making these again a step of a small model takes a twentieth less."""


def cheap(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """`function(*inputs)`, remembering how it was made; it must be deterministic and keep its tensors itself."""
    result = function(*inputs)
    if result.requires_grad and result.nbytes > SMALL:
        result.recipe = _Recipe(function, inputs)  # type: ignore[attr-defined]
    return result


def recomputing() -> AbstractContextManager[None]:
    """Inside, autograd keeps no result of `cheap`, nor a view of one."""
    return saved_tensors_hooks(_pack, _unpack)


def keeping_inputs(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """`function(*inputs)`, of which autograd keeps the inputs alone and computes what lies between anew."""
    return _KeepingInputs.apply(function, *inputs)


class _KeepingInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        ctx.function = function
        ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in inputs))
        return function(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        tensors = [
            None if value is None else value.detach().requires_grad_(wanted)
            for value, wanted in zip(ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        ]
        with torch.enable_grad():
            y = ctx.function(*(o if t is None else t for t, o in zip(tensors, ctx.others, strict=True)))
        wanted = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
        found = iter(torch.autograd.grad(y, wanted, dy))
        return None, *(next(found) if needed else None for needed in ctx.needs_input_grad[1:])


class _Kept:
    """A tensor as it was, without its history; a change since is our slip."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._version = tensor.detach(), tensor._version

    def tensor(self) -> Tensor:
        assert self._tensor._version == self._version, "changed in place after it was kept for the backward pass"
        return self._tensor


class _Recipe:
    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Any, ...]) -> None:
        self._function = function
        self._inputs = [_Kept(value) if isinstance(value, Tensor) else value for value in inputs]
        self._result: Tensor | None = None

    @torch.no_grad()
    def result(self) -> Tensor:
        if self._result is None:
            inputs = (value.tensor() if isinstance(value, _Kept) else value for value in self._inputs)
            self._result = self._function(*inputs)
        return self._result


class _View(NamedTuple):
    recipe: _Recipe
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


def _pack(tensor: Tensor) -> _Kept | _View:
    recipe = getattr(tensor if tensor._base is None else tensor._base, "recipe", None)
    if recipe is None:
        return _Kept(tensor)
    return _View(recipe, tensor.shape, tensor.stride(), int(tensor.storage_offset()))


def _unpack(kept: _Kept | _View) -> Tensor:
    if isinstance(kept, _Kept):
        return kept.tensor()
    return kept.recipe.result().as_strided(kept.shape, kept.stride, kept.offset)
