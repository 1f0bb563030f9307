"""The Newton-Schulz iteration in C++, matrix by matrix in the cache; and Muon's step around it, in the same visit."""

import ctypes
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.ops.native.call import FLAG, NUMBER, POINTER, SIZE, THREADS, kernel, pointer, threads


class _Parameter(ctypes.Structure):
    """As in orthogonalise.cpp."""

    _fields_ = (
        *((name, POINTER) for name in ("weights", "gradients", "momentum")),
        *((name, SIZE) for name in ("count", "rows", "columns")),
        *((name, NUMBER) for name in ("keep", "rate")),
    )


def orthogonalise_native(
    matrices: Float[Tensor, "N R C"], factors: tuple[float, float, float], iterations: int
) -> Float[Tensor, "N R C"]:
    """Arguments as in `orthogonalise_torch`; FP32, and also for R > C."""
    x = torch.empty(matrices.shape, dtype=torch.float32).copy_(matrices)
    kernel("orthogonalise", POINTER, SIZE, SIZE, SIZE, NUMBER, NUMBER, NUMBER, FLAG, THREADS)(
        pointer(x), *x.shape, *factors, iterations, threads()
    )
    return x


def muon_step_native(
    parameters: Sequence[tuple[Tensor, Tensor, Tensor]],
    momentum: float,
    keep: float,
    rates: Sequence[float],
    factors: tuple[float, float, float],
    iterations: int,
) -> None:
    """M ← μM + (1 - μ)G;   W ← keep W - rate · orthogonal((1 - μ)G + μM)   for stacks of matrices.

    Args:
        parameters: W, G and M of each, in FP32, W and M contiguous.
        momentum: μ.
    """
    gradients = [gradient.contiguous() for _, gradient, _ in parameters]
    assert all(t.is_contiguous() and t.dtype == torch.float32 for w, g, m in parameters for t in (w, m))
    every = (_Parameter * len(gradients))(
        *(
            _Parameter(*map(pointer, (w, g, m)), w[..., 0, 0].numel(), *w.shape[-2:], keep, -rate)
            for (w, _, m), g, rate in zip(parameters, gradients, rates, strict=True)
        )
    )
    kernel("muon_step", POINTER, SIZE, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, FLAG, THREADS)(
        ctypes.addressof(every), len(every), 1 - momentum, momentum, *factors, iterations, threads()
    )
