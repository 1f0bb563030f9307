"""The choice of experts in C++: K times the largest of what is left of a row."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqloom.ops.native.call import POINTER, SIZE, THREADS, kernel, pointer, threads


def best_native(scores: Float[Tensor, "*S E"], bias: Float[Tensor, "E"] | None, count: int) -> Int[Tensor, "*S J"]:
    """As `best_reference`, ties included."""
    assert scores.dtype == torch.float32
    assert 0 < count <= scores.shape[-1]
    scores, bias = scores.contiguous(), None if bias is None else bias.float().contiguous()
    experts = scores.shape[-1]
    best = scores.new_empty((*scores.shape[:-1], count), dtype=torch.int64)
    run = kernel("best_experts", POINTER, POINTER, POINTER, SIZE, SIZE, SIZE, THREADS)
    run(pointer(scores), pointer(bias), pointer(best), scores.numel() // experts, experts, count, threads())
    return best
