"""The Newton-Schulz iteration in C++, matrix by matrix in the cache."""

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.ops.native.call import FLAG, NUMBER, POINTER, SIZE, THREADS, kernel, pointer, threads


def orthogonalise_native(
    matrices: Float[Tensor, "N R C"], factors: tuple[float, float, float], iterations: int
) -> Float[Tensor, "N R C"]:
    """Arguments as in `orthogonalise_torch`; FP32."""
    x = torch.empty(matrices.shape, dtype=torch.float32).copy_(matrices)
    kernel("orthogonalise", POINTER, SIZE, SIZE, SIZE, NUMBER, NUMBER, NUMBER, FLAG, THREADS)(
        pointer(x), *x.shape, *factors, iterations, threads()
    )
    return x
