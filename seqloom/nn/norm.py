"""Normalisation: RMS, RMS gated by groups, and LayerNorm or RMS over any trailing axes; all computed in FP32 or wider.

Paper: Nemotron-H; see `ops.norm`.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from seqloom.ops.norm import gated_group_norm, rms_norm, wide


class RMSNorm(nn.Module):
    """y = w ∘ x / sqrt(mean(x²) + eps)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def initialise(self, std: float, layers: int) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return rms_norm(x, self.weight, self.eps)


class AxesNorm(nn.Module):
    """LayerNorm (gain and bias) or RMSNorm (gain) over the trailing axes together.

    Gains are stored flat, as one axis, like those of every other norm, so that weight decay passes them over.
    """

    def __init__(
        self, kind: Literal["layer", "rms"], axes: tuple[int, ...], eps: float, gains: tuple[int, ...] | None = None
    ) -> None:
        """
        Args:
            axes: sizes of the trailing axes that share one statistic.
            gains: shape of gain and bias, which the input's trailing axes must end in; by default that of `axes`.
        """
        super().__init__()
        self.kind, self.axes, self.eps, self.gains = kind, axes, eps, gains or axes
        self.weight = nn.Parameter(torch.ones(math.prod(self.gains)))
        self.bias = nn.Parameter(torch.zeros(math.prod(self.gains))) if kind == "layer" else None

    def initialise(self, std: float, layers: int) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        gain = wide(self.weight).view(self.gains)
        bias = None if self.bias is None else wide(self.bias).view(self.gains)
        if self.gains == self.axes:
            return self._normed(wide(x), gain, bias).to(x.dtype)
        y = self._normed(wide(x), None, None) * gain
        return (y if bias is None else y + bias).to(x.dtype)

    def _normed(self, x: Tensor, gain: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.kind == "rms":
            return F.rms_norm(x, self.axes, gain, self.eps)
        return F.layer_norm(x, self.axes, gain, bias, self.eps)


class GatedGroupRMSNorm(nn.Module):
    """g = y ∘ SiLU(z), then RMSNorm over each of `groups` contiguous groups of channels."""

    def __init__(self, width: int, groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.groups = groups
        self.eps = eps

    def initialise(self, std: float, layers: int) -> None:
        nn.init.ones_(self.weight)

    def forward(self, y: Float[Tensor, "B T D"], z: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return gated_group_norm(y, z, self.weight, self.groups, self.eps)
