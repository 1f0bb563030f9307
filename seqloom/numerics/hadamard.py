"""The random Hadamard transform, which spreads outliers over a tile of consecutive values.

    v' = v H,   H = diag(signs) W / √n,   W the Sylvester-Hadamard matrix of ±1

H is orthogonal, so (gᵀH)(Hᵀx) = gᵀx: applied to both operands along the contraction axis it cancels without an inverse.
The sums run in FP32 as butterflies (a + b, a - b) of elements n/2 apart, then n/4, down to 1: a fixed order that every
kernel can repeat. They are rounded once to BF16; x itself is not rounded before.

Paper: "Pretraining LLMs with NVFP4", section 4 (random Hadamard transforms); one fixed vector of signs serves all.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import BFloat16, Float
from torch import Tensor

DEFAULT_SIGNS: tuple[int, ...] = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)


def hadamard(x: Float[Tensor, "R C"], axis: Literal[0, 1], signs: tuple[int, ...]) -> BFloat16[Tensor, "R2 C2"]:
    """Transform tiles of len(signs) values along an axis, which is padded with zeros to whole tiles first.

    Args:
        signs: ±1 for every place of a tile; their number, a power of two, is the size of the transform.
    """
    size = len(signs)
    assert size & (size - 1) == 0, f"a Hadamard transform of {size} points"
    rows = x.T if axis == 0 else x
    tiles = F.pad(rows.float(), (0, -rows.shape[1] % size)).unflatten(1, (-1, size))
    tiles = tiles * torch.tensor(signs, dtype=torch.float32, device=x.device)
    half = size // 2
    while half:
        first, second = tiles.unflatten(-1, (-1, 2, half)).unbind(-2)
        tiles = torch.stack((first + second, first - second), -2).flatten(-3)
        half //= 2
    result = (tiles * size**-0.5).flatten(1).bfloat16()
    return result.T.contiguous() if axis == 0 else result
