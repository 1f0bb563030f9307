"""Functions of single numbers, row by row where invariance is asked for.

Torch computes most numbers of a tensor in vectors and the last few one by one, and for exp and its kin the two ways
differ in the last bit: what a number becomes then depends on how many stand beside it. Rows by themselves have no
neighbours.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.ops.kernels import is_invariant


def rowwise(function: Callable[[Tensor], Tensor], x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """function(x) for a function of single numbers."""
    if not is_invariant() or x.dim() < 2 or not x.numel():
        return function(x)
    return torch.stack([function(row) for row in x.reshape(-1, x.shape[-1]).contiguous()]).view(x.shape)
