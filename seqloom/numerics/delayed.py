"""Delayed scaling: the scale of an FP8 tensor comes from the amax of earlier steps, so that one pass over it is enough.

    scale_t = largest / (2^margin · max(amax_{t-1}, ..., amax_{t-length}))

The amax of a step is the largest over its micro-batches and over all ranks. It is remembered when the step is taken, so
evaluating, computing again and steps that are refused leave no trace. A tensor that outgrows its history saturates; as
long as nothing but zeros was seen, its own amax scales it, where Transformer Engine begins with a scale of 1.
Source: FP8 formats (arXiv 2209.05433), section 3; `DelayedScaling` of Transformer Engine, whose defaults these are.
"""

import torch
from jaxtyping import Float32
from torch import Tensor


class AmaxHistory:
    """The amax of the last steps of one tensor."""

    def __init__(self, length: int = 1024, margin: int = 0) -> None:
        """
        Args:
            length: steps that are remembered; the greatest of their amax counts.
            margin: powers of two that are left free above it.
        """
        self.recent: Float32[Tensor, "length"] = torch.zeros(length)
        """The newest first. It is all the state there is."""
        self._margin = margin

    def amax(self, own: Float32[Tensor, ""]) -> Float32[Tensor, ""]:
        """What `quantize(x, scheme, amax=...)` scales by in this step.

        Args:
            own: the amax of x itself.
        """
        seen = self.recent.to(own.device).max() * 2.0**self._margin
        return torch.where(seen > 0, seen, own)

    def record(self, amax: Float32[Tensor, ""]) -> None:
        """Remember the amax of a step."""
        self.recent = torch.cat((amax.view(1), self.recent.to(amax.device)[:-1]))
