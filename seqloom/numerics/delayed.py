"""Delayed scaling: the scale of an FP8 tensor comes from the amax of earlier steps, so one pass over it is enough.

    scale_t = largest / (2^margin · max(amax_{t-1}, ..., amax_{t-window})),   1 before anything was seen

A tensor that grows beyond its history saturates. A step whose amax is not finite leaves the scale as it was.
Source: FP8 formats (arXiv 2209.05433), section 3; the history and its defaults are those of Transformer Engine.
"""

import torch
from jaxtyping import Float32
from torch import Tensor


class AmaxHistory:
    """The amax of the last steps of one tensor."""

    def __init__(self, window: int = 1024, margin: int = 0, device: torch.device | str = "cpu") -> None:
        """
        Args:
            window: steps that are remembered; the greatest of their amax counts.
            margin: powers of two that are left free above it.
        """
        self.recent: Float32[Tensor, "window"] = torch.zeros(window, device=device)
        """The newest first. It is all the state there is."""
        self.margin = margin

    def amax(self) -> Float32[Tensor, ""]:
        """What `quantize(x, scheme, amax=...)` scales by in this step."""
        return self.recent.max() * 2.0**self.margin

    def record(self, amax: Float32[Tensor, ""]) -> None:
        """Remember the amax of this step, after the tensor was quantized."""
        seen = torch.where(amax.isfinite(), amax, 0.0)
        self.recent = torch.cat((seen.view(1), self.recent[:-1]))
