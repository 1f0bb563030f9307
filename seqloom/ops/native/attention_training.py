"""Causal attention over packed documents in C++, with gradients; kept for the way back are its inputs, the result, and
one number for every query and head. BF16 is widened on the way in and rounded on the way out."""

import ctypes
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqloom.ops.native.call import FLAG, NUMBER, POINTER, SIZE, kernel, pointer, threads


class _Heads(ctypes.Structure):
    _fields_ = (("data", POINTER), *((name, SIZE) for name in ("row", "token", "head")))


class _Problem(ctypes.Structure):
    """As in attention_training.cpp."""

    _fields_ = (
        *((name, SIZE) for name in ("rows", "tokens", "heads", "groups", "width")),
        ("scale", NUMBER),
        ("threads", FLAG),
        *((name, _Heads) for name in ("q", "k", "v", "y", "dy", "dq", "dk", "dv")),
        ("documents", POINTER),
        ("normalizers", POINTER),
    )


def attention_training_native(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G T K"],
    v: Float[Tensor, "B G T K"],
    documents: Int[Tensor, "B T"] | None,
    scale: float,
) -> Float[Tensor, "B H T K"]:
    """FP32 or BF16. Arguments as in `attention`, and what scores are multiplied by."""
    return _Attention.apply(q, k, v, documents, scale)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, scale: float) -> Tensor:
        B, H, T, _ = q.shape
        numbers = None if documents is None else documents.to(torch.int32).contiguous()
        wide, normalizers = _beside(q), torch.empty(B, H, T, dtype=torch.float32)
        _run("forward", (q.float(), k.float(), v.float(), wide), numbers, normalizers, scale)
        y = wide.to(q.dtype)
        ctx.save_for_backward(q, k, v, y, numbers, normalizers)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *kept, numbers, normalizers = ctx.saved_tensors
        changes = [_beside(x) for x in kept[:3]]
        _run("backward", (*(x.float() for x in (*kept, dy)), *changes), numbers, normalizers, ctx.scale)
        return *(change.to(dy.dtype) for change in changes), None, None


def _beside(x: Float[Tensor, "B N T K"]) -> Float[Tensor, "B N T K"]:
    """Memory of the same shape in which the heads of a token lie side by side, as projections want them."""
    B, N, T, K = x.shape
    return torch.empty(B, T, N, K, dtype=torch.float32).transpose(1, 2)


def _run(
    way: str, tensors: tuple[Tensor, ...], numbers: Tensor | None, normalizers: Float[Tensor, "B H T"], scale: float
) -> None:
    ready = [x if x.stride(3) == 1 else x.contiguous() for x in tensors]
    heads = [_Heads(pointer(x), x.stride(0), x.stride(2), x.stride(1)) for x in ready]
    (B, H, T, K), G = tensors[0].shape, tensors[1].shape[1]
    assert all(x.dtype == torch.float32 for x in ready)
    problem = _Problem(
        B, T, H, G, K, scale, threads(), *heads, *[_Heads()] * (8 - len(heads)), pointer(numbers),
        pointer(normalizers),
    )  # fmt: skip
    if tensors[0].numel():
        kernel(f"attention_training_{way}", POINTER)(ctypes.addressof(problem))
