"""Causal grouped-query attention without any position signal; the Mamba layers before it carry order.

Paper: Nemotron-H, section 2: no rotary, no bias, no dropout, scale head_width^-0.5.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqloom.nn.linear import Linear
from seqloom.nn.state import KVState
from seqloom.ops.attention import attention


class Attention(nn.Module):
    """One attention mixer; remembers keys and values."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, head_width
        self.q_proj = Linear(width, heads * head_width)
        self.k_proj = Linear(width, kv_heads * head_width)
        self.v_proj = Linear(width, kv_heads * head_width)
        self.o_proj = Linear(heads * head_width, width, residual_output=True)

    def new_state(self, batch: int, dtype: torch.dtype) -> KVState:
        return KVState(batch, self.kv_heads, self.head_width, dtype, self.q_proj.weight.device)

    def forward(
        self, x: Float[Tensor, "B T D"], documents: Int[Tensor, "B T"] | None = None, state: KVState | None = None
    ) -> Float[Tensor, "B T D"]:
        """
        Args:
            documents: rising document numbers of packed rows; no token sees another document.
            state: earlier keys and values, to which those of `x` are appended.
        """
        q = self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.k_proj(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        lengths = None
        if state is not None:
            lengths = state.lengths
            k, v = state.append(k, v)
        y = attention(q, k, v, documents=documents, lengths=lengths)
        return self.o_proj(y.transpose(1, 2).flatten(-2))
