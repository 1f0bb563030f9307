"""Row convolution: each unit looks at its own next few values, which lets a forward model hear a little ahead.

    r_{t,i} = Σ_{j=1..τ+1} W_{i,j} h_{t+j-1,i}

It costs a latency of τ steps where a second direction would cost the whole utterance. Deep Speech 2, section 3.7.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class RowConv(nn.Module):
    """A depthwise convolution over the present and τ later steps, without bias."""

    def __init__(self, width: int, context: int) -> None:
        """It begins as the identity, so that training starts from what the layers below can do without it.

        Args:
            context: τ, later steps that are looked at.
        """
        super().__init__()
        self.context = context
        self.weight = nn.Parameter(torch.zeros(width, context + 1))
        nn.init.ones_(self.weight[:, 0])

    def forward(self, x: Float[Tensor, "B T H"]) -> Float[Tensor, "B T H"]:
        """Of whole utterances; beyond their end, where `x` must be zero, there is nothing to hear."""
        return self.known(F.pad(x, (0, 0, 0, self.context)))

    def known(self, x: Float[Tensor, "B S H"]) -> Float[Tensor, "B T H"]:
        """Outputs of all steps whose τ later ones are here: T = S - τ."""
        length = x.shape[1] - self.context
        total = x[:, :length] * self.weight[:, 0]
        for later in range(1, self.context + 1):
            total = torch.addcmul(total, x[:, later : later + length], self.weight[:, later])
        return total
