"""RMS normalisation, plain and gated by groups; both computed in FP32 whatever the activations are.

Paper: Nemotron-H; the gate comes first and the statistics are per group (Mamba-2, section 7, "norm before output").
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """y = w ∘ x / sqrt(mean(x²) + eps)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def initialise(self, std: float, layers: int) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).to(x.dtype)


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
        gated = (y.float() * F.silu(z.float())).unflatten(-1, (self.groups, -1))
        normed = F.rms_norm(gated, gated.shape[-1:], None, self.eps).flatten(-2)
        return (normed * self.weight.float()).to(z.dtype)
