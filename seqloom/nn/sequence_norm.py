"""Sequence-wise batch normalization: one mean and variance per channel over the minibatch and all its valid steps.

    B(x) = γ (x - E[x]) / √(Var[x] + ε) + β        E, Var over items and time together, padding left out

Inference uses running averages of both, collected while training. Deep Speech 2, section 3.2: for recurrent layers only
the input term W x is normalized, and statistics of single time steps, which work less well, are not taken.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class SequenceNorm(nn.Module):
    """Batch normalization with statistics over items and valid time steps."""

    running_mean: Float[Tensor, "C"]
    running_variance: Float[Tensor, "C"]

    def __init__(self, width: int, axis: int = -1, momentum: float = 0.1, eps: float = 1e-5) -> None:
        """
        Args:
            axis: where the channels are; all other axes are summed over.
            momentum: share of a minibatch in the running averages.
        """
        super().__init__()
        self.axis, self.momentum, self.eps = axis, momentum, eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_variance", torch.ones(width))

    def forward(self, x: Float[Tensor, "*B"], valid: Float[Tensor, "*V"]) -> Float[Tensor, "*B"]:
        """Normalized values in FP32; those at invalid places are of no meaning.

        Args:
            valid: 1 at steps of an utterance and 0 at padding, shaped to broadcast against `x`, with one number for all
                channels.
        """
        x = x.float()
        if not self.training:
            scale = self.weight * torch.rsqrt(self.running_variance + self.eps)
            return x * self._along(scale, x) + self._along(self.bias - self.running_mean * scale, x)
        normalized, mean, variance, count = _Normalize.apply(x, valid, self.axis % x.ndim, self.eps)
        self._follow(mean, variance, count)
        return normalized * self._along(self.weight, x) + self._along(self.bias, x)

    @torch.no_grad()
    def _follow(self, mean: Float[Tensor, "C"], variance: Float[Tensor, "C"], count: Float[Tensor, ""]) -> None:
        """Move the running averages, unless the minibatch overflowed: its step will not be taken either."""
        unbiased = variance * count / (count - 1).clamp(min=1)
        finite = torch.isfinite(mean).all() & torch.isfinite(unbiased).all()  # stays on the device: nobody waits for it
        for running, new in ((self.running_mean, mean), (self.running_variance, unbiased)):
            running.lerp_(torch.where(finite, new, running), self.momentum)

    def _along(self, values: Float[Tensor, "C"], x: Tensor) -> Tensor:
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return values.view(shape)


class _Normalize(torch.autograd.Function):
    """(x - E[x]) / √(Var[x] + ε); keeps only the result for the backward pass, and zeros at padding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, valid: Tensor, axis: int, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes = [other for other in range(x.ndim) if other != axis]
        places = valid.sum() * (x.numel() // x.shape[axis] / valid.numel())
        mean = (x * valid).sum(axes, keepdim=True) / places
        centred = (x - mean).mul_(valid)
        variance = centred.square().sum(axes, keepdim=True) / places
        scale = torch.rsqrt(variance + eps)
        normalized = centred.mul_(scale)
        ctx.save_for_backward(normalized, valid, scale, places)
        ctx.axes = axes
        mean, variance = mean.flatten(), variance.flatten()
        ctx.mark_non_differentiable(mean, variance, places)
        return normalized, mean, variance, places

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        normalized, valid, scale, places = ctx.saved_tensors
        gradient = gradients[0] * valid
        mean = gradient.sum(ctx.axes, keepdim=True) / places
        along = (gradient * normalized).sum(ctx.axes, keepdim=True) / places
        return gradient.sub_(mean).addcmul_(normalized, along, value=-1).mul_(scale).mul_(valid), None, None, None
