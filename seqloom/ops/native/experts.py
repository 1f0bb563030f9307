"""Routed experts on the CPU, plain or with low-rank adapters: assignments sorted by counting, and each expert's rows
through both products, block by block, while they are in the cache.

As in the torch forms what the activation got is kept for the backward pass. Nothing else is: sorting again costs less
than keeping the order.
"""

import ctypes
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqloom.ops.native.call import FLAG, NUMBER, POINTER, SIZE, THREADS, kernel, pointer, threads

_TENSORS = ("x", "chosen", "weights", "up", "up_a", "up_b", "down", "down_a", "down_b", "work")
_SIZES = ("S", "K", "E", "I", "F", "up_rank", "down_rank")


class _Arguments(ctypes.Structure):
    """What both kernels are told; as in experts.cpp."""

    _fields_ = (
        *((name, POINTER) for name in _TENSORS),
        *((name, SIZE) for name in _SIZES),
        ("scale", NUMBER),
        ("kind", FLAG),
        ("threads", THREADS),
    )


def experts_native(
    x: Float[Tensor, "S I"],
    indices: Int[Tensor, "S K"],
    weights: Float[Tensor, "S K"],
    up: Float[Tensor, "E F I"],
    down: Float[Tensor, "E I F"],
) -> Float[Tensor, "S I"]:
    """Each expert on the rows sent to it; arithmetic in FP32 whatever the storage."""
    return _run(x, indices, weights, up, down, None, None, None, None, 0.0)


def adapted_native(
    x: Float[Tensor, "S I"],
    indices: Int[Tensor, "S K"],
    weights: Float[Tensor, "S K"],
    up: Float[Tensor, "E F I"],
    down: Float[Tensor, "E I F"],
    up_adapter: tuple[Float[Tensor, "E R I"], Float[Tensor, "E F R"]],
    down_adapter: tuple[Float[Tensor, "E Q F"], Float[Tensor, "E I Q"]],
    scale: float,
) -> Float[Tensor, "S I"]:
    """The same with frozen matrices, in FP32 or BF16, and adapters; those that do nothing change no bit."""
    return _run(x, indices, weights, up, down, *up_adapter, *down_adapter, scale)


def _run(*given: Any) -> Tensor:
    if torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in given):
        return _NativeExperts.apply(*given)
    return _forward(given, None)


class _NativeExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        x, indices, _, up, *_ = given
        hidden = x.new_empty(indices.numel(), up.shape[1])
        ctx.save_for_backward(*given[:-1], hidden)
        ctx.scale = given[-1]
        return _forward(given, hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *given, hidden = ctx.saved_tensors
        x, indices, weights, *_ = given
        dx, _, _, dup, ddown, *dadapters = (
            value.new_empty(value.shape) if wanted else None
            for value, wanted in zip(given, ctx.needs_input_grad, strict=False)
        )
        dweights = weights.new_empty(weights.shape, dtype=torch.float32)
        dinputs = None if dx is None else x.new_empty(indices.numel(), x.shape[1], dtype=torch.float32)
        arguments, _work, _alive = _arguments(*(*given, ctx.scale))
        assert all(d is None or d.dtype == x.dtype for d in (dup, ddown)), "only frozen matrices may differ"
        found = (dx, dweights, dinputs, dup, *dadapters[:2], ddown, *dadapters[2:])
        dy = dy.contiguous()
        run = kernel("experts_backward", *12 * (POINTER,))
        run(ctypes.addressof(arguments), *map(pointer, (dy, hidden, *found)))
        return dx, None, dweights.to(weights.dtype), dup, ddown, *dadapters, None


def _forward(given: tuple[Any, ...], hidden: Tensor | None) -> Tensor:
    """
    Args:
        hidden: where to keep what the activation got.
    """
    x, indices, _, up, *_ = given
    arguments, work, _alive = _arguments(*given)
    outputs = x.new_empty(indices.numel(), x.shape[1], dtype=torch.float32)
    y = x.new_empty(x.shape)
    run = kernel("experts_forward", *4 * (POINTER,))
    run(ctypes.addressof(arguments), *map(pointer, (hidden, outputs, y)))
    assert int(work[-1]) == indices.numel(), f"a chosen expert is none of the {len(up)}"
    return y


def _arguments(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    up: Tensor,
    down: Tensor,
    up_a: Tensor | None,
    up_b: Tensor | None,
    down_a: Tensor | None,
    down_b: Tensor | None,
    scale: float,
) -> tuple[_Arguments, Tensor, list[Tensor | None]]:
    """
    Returns:
        the arguments, the memory to sort in, and all tensors that must stay alive while the arguments are used.
    """
    (S, K), (E, F, width) = indices.shape, up.shape
    assert S * K < 2**31
    assert all(factor is None or factor.dtype == x.dtype for factor in (up_a, up_b, down_a, down_b))
    stored = up.dtype if x.dtype == torch.float32 and up.dtype == down.dtype else x.dtype
    work = x.new_empty(2 * S * K + E + 1, dtype=torch.int32)
    given = (x, indices.long(), weights.float(), up.to(stored), up_a, up_b, down.to(stored), down_a, down_b, work)
    alive = [None if value is None else value.contiguous() for value in given]
    ranks = (0 if a is None else a.shape[1] for a in (up_a, down_a))
    kind = 1 if x.dtype == torch.bfloat16 else 2 if stored == torch.bfloat16 else 0
    return _Arguments(*map(pointer, alive), S, K, E, width, F, *ranks, scale, kind, threads()), work, alive
