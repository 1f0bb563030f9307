"""The router's choice: the experts with the largest scores, by `chosen("experts")` with what runs them.

    best_s = the K largest of score_se + bias_e over e, largest first

Which of equal scores comes first is the implementation's own affair; the reference and the native form take the first.
Nothing here has a gradient.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqloom.ops.kernels import chosen


@torch.no_grad()
def best_experts(scores: Float[Tensor, "*S E"], bias: Float[Tensor, "E"] | None, count: int) -> Int[Tensor, "*S J"]:
    """Choose with the implementation for this device and dtype.

    Args:
        bias: added to every row, if there is one.
        count: J, at most E.
    """
    implementation = chosen("experts", scores.device, scores.dtype, scores, bias)
    if implementation == "native" and scores.dtype == torch.float32:
        from seqloom.ops.native.best_experts import best_native

        return best_native(scores, bias, count)
    return (best_reference if implementation == "reference" else best_torch)(scores, bias, count)


def best_reference(scores: Float[Tensor, "*S E"], bias: Float[Tensor, "E"] | None, count: int) -> Int[Tensor, "*S J"]:
    """All experts in order."""
    biased = scores if bias is None else scores + bias
    return biased.argsort(dim=-1, descending=True, stable=True)[..., :count]


def best_torch(scores: Float[Tensor, "*S E"], bias: Float[Tensor, "E"] | None, count: int) -> Int[Tensor, "*S J"]:
    biased = scores if bias is None else scores + bias
    return biased.topk(count, -1).indices
