"""The nearest orthogonal matrices, about, by products alone: the Newton-Schulz iteration of an odd quintic.

    X ← X / ‖X‖;   then again and again   X ← aX + (bA + cA²)X   with A = XXᵀ

Each step maps every singular value by the quintic and leaves singular vectors alone; a few bring all values that are
not tiny near 1.
Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
"""

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.ops.kernels import chosen

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steepest at 0 of the quintics that stay in about [0.7, 1.2] (Jordan et al.)
ITERATIONS = 5

_TOGETHER = 2**18
"""Numbers of the matrices that the torch form multiplies in one batch, so that they stay in a cache."""


def orthogonalise(matrices: Float[Tensor, "N R C"]) -> Float[Tensor, "N R C"]:
    """Bring all singular values of each matrix (R ≤ C) to about 1, in BF16 on a GPU and FP32 elsewhere."""
    implementation = chosen("orthogonalise", matrices.device, matrices.dtype, matrices)
    if implementation == "native":
        from seqloom.ops.native.orthogonalise import orthogonalise_native as form
    else:
        form = orthogonalise_reference if implementation == "reference" else orthogonalise_torch
    return form(matrices, COEFFICIENTS, ITERATIONS)


def orthogonalise_reference(
    matrices: Float[Tensor, "N R C"], factors: tuple[float, float, float], iterations: int
) -> Float[Tensor, "N R C"]:
    """Matrix by matrix, as the formula reads, in the dtype of the input; arguments as in `orthogonalise_torch`."""
    a, b, c = factors
    results = []
    for x in matrices:
        x = x / x.norm().clamp(min=1e-7)
        for _ in range(iterations):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        results.append(x)
    return torch.stack(results) if results else matrices.clone()


def orthogonalise_torch(
    matrices: Float[Tensor, "N R C"], factors: tuple[float, float, float], iterations: int
) -> Float[Tensor, "N R C"]:
    """
    Args:
        factors: a, b and c of the quintic.
    """
    dtype = torch.bfloat16 if matrices.is_cuda else torch.promote_types(matrices.dtype, torch.float32)
    result = torch.empty_like(matrices, dtype=dtype)
    together = len(matrices) if matrices.is_cuda else max(1, _TOGETHER // max(1, matrices[:1].numel()))
    for inputs, outputs in zip(matrices.split(together), result.split(together), strict=True):
        outputs.copy_(_iterate(inputs.to(dtype), factors, iterations))
    return result


def _iterate(x: Float[Tensor, "N R C"], factors: tuple[float, float, float], iterations: int) -> Float[Tensor, "N R C"]:
    a, b, c = factors
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
