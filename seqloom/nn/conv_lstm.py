"""Convolutional LSTM: an LSTM whose state is an image and whose matrices are convolutions.

    i, f, o = σ(W_x * x_t + W_h * h_{t-1} + b)      g = tanh(W_x * x_t + W_h * h_{t-1} + b)
    c_t = f ∘ c_{t-1} + i ∘ g                       h_t = o ∘ tanh(c_t)

The convolution of the inputs does not wait for the state and is made for a whole unroll at once; only the recurrent one
runs step by step. The bias of the forget gate begins at 1, so that fresh weights remember. No peephole terms.
Paper: attention-augmented agent, section 2.1 (vision core); the unit is that of Shi et al. 2015.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from seqloom.numerics.precision import Format, dtype_of

ImageState = tuple[Float[Tensor, "B C Y X"], Float[Tensor, "B C Y X"]]
"""Output h and memory c after a step."""


class ConvLSTM(nn.Module):
    """Runs over an unroll; images keep their size (padding SAME)."""

    def __init__(self, in_channels: int, channels: int, kernel: int = 3) -> None:
        """
        Args:
            kernel: rows and columns of both kernels; odd.
        """
        super().__init__()
        assert kernel % 2, f"a kernel of {kernel} has no middle"
        self.channels = channels
        self.input = nn.Conv2d(in_channels, 4 * channels, kernel, padding=kernel // 2)
        self.recurrent = nn.Conv2d(channels, 4 * channels, kernel, padding=kernel // 2, bias=False)
        assert self.input.bias is not None
        for layer in (self.input, self.recurrent):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        with torch.no_grad():
            self.input.bias[channels : 2 * channels] = 1.0
        self.format: Format = "fp32"
        """Of the convolutions; gates and memory are always FP32."""

    def forward(
        self, inputs: Float[Tensor, "T B I Y X"], begins: Bool[Tensor, "T B"], state: ImageState
    ) -> tuple[Float[Tensor, "T B C Y X"], ImageState]:
        """
        Args:
            begins: steps before which a row's state is forgotten.
            state: of the step before the first.
        Returns:
            outputs of all steps, and the state after the last.
        """
        h, c = state
        steps = self._convolve(self.input, inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
        outputs = []
        for step, keep in zip(steps, (~begins)[..., None, None, None].to(h.dtype), strict=True):
            i, f, o, g = (step + self._convolve(self.recurrent, h * keep)).chunk(4, dim=1)
            c = torch.sigmoid(f) * (c * keep) + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs), (h, c)

    def _convolve(self, layer: nn.Conv2d, images: Float[Tensor, "N I Y X"]) -> Float[Tensor, "N O Y X"]:
        dtype = dtype_of(self.format)
        bias = None if layer.bias is None else layer.bias.to(dtype)
        return F.conv2d(images.to(dtype), layer.weight.to(dtype), bias, padding=layer.padding).float()
