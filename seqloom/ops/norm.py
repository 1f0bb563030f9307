"""RMS normalisation, and the same over gated groups of channels; computed in FP32 or wider.

    rms_norm     y = w ∘ x / sqrt(mean(x²) + eps)
    gated        g = y ∘ SiLU(z);   w ∘ g / sqrt(mean(g²) + eps), the mean over each group of channels

Paper: Nemotron-H; the gate comes first and the statistics are per group (Mamba-2, section 7, "norm before output").
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from seqloom.ops.kernels import chosen
from seqloom.ops.recompute import cheap, keeping_inputs
from seqloom.ops.rowwise import rowwise


def rms_norm(x: Float[Tensor, "*B D"], weight: Float[Tensor, "D"], eps: float) -> Float[Tensor, "*B D"]:
    """Normalise the last axis with the implementation chosen for this device and dtype; the result has the dtype of
    `x`."""
    implementation = chosen("norm", x.device, x.dtype, x, weight)
    if implementation == "native":
        from seqloom.ops.native.norm import rms_norm_native as form
    elif implementation == "triton":
        from seqloom.ops.triton.norm import rms_norm_triton as form
    else:
        form = rms_norm_reference if implementation == "reference" else rms_norm_torch
    return cheap(form, x, weight, eps)


def rms_norm_reference(x: Float[Tensor, "*B D"], weight: Float[Tensor, "D"], eps: float) -> Float[Tensor, "*B D"]:
    """As the formula reads."""
    numbers = wide(x)
    return (wide(weight) * numbers / torch.sqrt(numbers.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def rms_norm_torch(x: Float[Tensor, "*B D"], weight: Float[Tensor, "D"], eps: float) -> Float[Tensor, "*B D"]:
    """By torch's own norm, keeping its inputs alone."""
    return keeping_inputs(_rms_norm, x, weight, eps)


def _rms_norm(x: Float[Tensor, "*B D"], weight: Float[Tensor, "D"], eps: float) -> Float[Tensor, "*B D"]:
    return F.rms_norm(wide(x), x.shape[-1:], wide(weight), eps).to(x.dtype)


def gated_group_norm(
    y: Float[Tensor, "B T D"], z: Float[Tensor, "B T D"], weight: Float[Tensor, "D"], groups: int, eps: float
) -> Float[Tensor, "B T D"]:
    """Gate by `z` and normalise each of `groups` contiguous groups of channels, with the implementation chosen for this
    device and dtype; the result has the dtype of `z`."""
    implementation = chosen("norm", z.device, z.dtype, y, z, weight)
    if implementation == "native":
        from seqloom.ops.native.norm import gated_group_norm_native as form
    elif implementation == "triton":
        from seqloom.ops.triton.norm import gated_group_norm_triton as form
    else:
        form = gated_group_norm_reference if implementation == "reference" else gated_group_norm_torch
    return cheap(form, y, z, weight, groups, eps)


def gated_group_norm_reference(
    y: Float[Tensor, "B T D"], z: Float[Tensor, "B T D"], weight: Float[Tensor, "D"], groups: int, eps: float
) -> Float[Tensor, "B T D"]:
    """As the formula reads."""
    gated = (wide(y) * F.silu(wide(z))).unflatten(-1, (groups, -1))
    normed = gated / torch.sqrt(gated.square().mean(-1, keepdim=True) + eps)
    return (normed.flatten(-2) * wide(weight)).to(z.dtype)


def gated_group_norm_torch(
    y: Float[Tensor, "B T D"], z: Float[Tensor, "B T D"], weight: Float[Tensor, "D"], groups: int, eps: float
) -> Float[Tensor, "B T D"]:
    """By torch's own norm, keeping its inputs alone."""
    return keeping_inputs(_gated_group_norm, y, z, weight, groups, eps)


def _gated_group_norm(
    y: Float[Tensor, "B T D"], z: Float[Tensor, "B T D"], weight: Float[Tensor, "D"], groups: int, eps: float
) -> Float[Tensor, "B T D"]:
    gated = (wide(y) * rowwise(F.silu, wide(z))).unflatten(-1, (groups, -1))
    normed = F.rms_norm(gated, gated.shape[-1:], None, eps).flatten(-2)
    return (normed * wide(weight)).to(z.dtype)


def wide(x: Tensor) -> Tensor:
    """At least FP32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
