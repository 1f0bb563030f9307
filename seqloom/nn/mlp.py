"""The squared-ReLU MLP: y = W_down relu(W_up x)²; two matrices, no gate.

Paper: Nemotron-H, section 2 (activation from "Primer").
"""

from jaxtyping import Float
from torch import Tensor, nn

from seqloom.nn.linear import Linear
from seqloom.ops.squared_relu import squared_relu


class Mlp(nn.Module):
    """One MLP mixer; remembers nothing."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.up_proj = Linear(width, hidden_width)
        self.down_proj = Linear(hidden_width, width, residual_output=True)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return self.down_proj(squared_relu(self.up_proj(x)))
