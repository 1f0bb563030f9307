"""Matrices of weights as the kernels are told of them: where they lie, and in which format; `Matrix` in matrix.h."""

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from seqloom.ops.native.call import NUMBER, POINTER
from seqloom.ops.packed_linear import PackedWeight

Weight = Tensor | PackedWeight
"""A matrix, or a stack of them, that is contiguous in memory of the CPU; plain numbers are FP32 or BF16."""

_KINDS = {torch.float32: 0, torch.bfloat16: 1, "int8": 2, "fp8": 3, "nvfp4": 4}


class Matrix(ctypes.Structure):
    _fields_ = (("data", POINTER), ("scales", POINTER), ("multiplier", NUMBER), ("kind", ctypes.c_int32))


def matrices(*weights: Weight) -> ctypes.Array[Matrix]:
    """Every matrix of a layer, in an order of its own; the caller keeps the weights alive through the call."""
    return _made(tuple([_fields(weight) for weight in weights]))


def stack(weights: Weight) -> ctypes.Array[Matrix]:
    """Every matrix of a stack [E, N, K]."""
    if isinstance(weights, Tensor):
        return _cut(*_fields(weights), len(weights), weights[0].nbytes, 0, None)
    scales = 0 if weights.scales is None else weights.scales[0].nbytes
    return _cut(*_fields(weights), len(weights.codes), weights.codes[0].nbytes, scales, weights.multipliers)


def _fields(weight: Weight) -> tuple[int, int | None, float, int]:
    if isinstance(weight, Tensor):
        return weight.data_ptr(), None, 1.0, _KINDS[weight.dtype]
    scales = None if weight.scales is None else weight.scales.data_ptr()
    return weight.codes.data_ptr(), scales, weight.multipliers[0], _KINDS[weight.kind]


@lru_cache(maxsize=4096)
def _made(fields: tuple[tuple[int, int | None, float, int], ...]) -> ctypes.Array[Matrix]:
    """Kept by what it holds, so a token does not pay for making it."""
    return (Matrix * len(fields))(*(Matrix(*each) for each in fields))


@lru_cache(maxsize=1024)
def _cut(
    data: int,
    scales: int | None,
    multiplier: float,
    kind: int,
    count: int,
    apart: int,
    scales_apart: int,
    multipliers: tuple[float, ...] | None,
) -> ctypes.Array[Matrix]:
    each = multipliers or count * (multiplier,)
    return (Matrix * count)(
        *(
            Matrix(data + i * apart, None if scales is None else scales + i * scales_apart, each[i], kind)
            for i in range(count)
        )
    )
