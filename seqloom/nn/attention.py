"""Causal grouped-query attention without any position signal; the Mamba layers before it carry order.

Paper: Nemotron-H, section 2: no rotary, no bias, no dropout, scale head_width^-0.5; the optional norms of queries, keys
and values and the shaping of scores are those of `nn.stability`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqloom.nn.linear import Linear
from seqloom.nn.narrow_state import FP8KVState
from seqloom.nn.norm import AxesNorm
from seqloom.nn.paged_kv import PagedKV, PagedRows
from seqloom.nn.stability import PLAIN, Stability
from seqloom.nn.state import KVState
from seqloom.nn.state_formats import AS_COMPUTED, StateFormats
from seqloom.ops.attention import Shaping, attention


class Attention(nn.Module):
    """One attention mixer; remembers keys and values, as attention sees them."""

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_width: int,
        eps: float = 1e-5,
        stability: Stability = PLAIN,
    ) -> None:
        """
        Args:
            eps: of the norms that stability methods add.
        """
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, head_width
        self.q_proj = Linear(width, heads * head_width)
        self.k_proj = Linear(width, kv_heads * head_width)
        self.v_proj = Linear(width, kv_heads * head_width)
        self.o_proj = Linear(heads * head_width, width, residual_output=True)
        self.k_scale = self.v_scale = 1.0  # of keys and values in FP8; a quantized folder brings calibrated ones
        self.shaping = Shaping(stability.soft_cap, stability.inverse_temperature, stability.soft_clip)

        def head_norm(heads: int) -> nn.Module:
            gains = (heads, head_width) if stability.per_head else (head_width,)
            return AxesNorm(stability.norm, (head_width,), eps, gains)

        self.q_norm = head_norm(heads) if stability.qk_norm else nn.Identity()
        self.k_norm = head_norm(kv_heads) if stability.qk_norm else nn.Identity()
        self.v_norm: nn.Module = nn.Identity()
        if stability.v_norm == "head":
            self.v_norm = head_norm(kv_heads)
        elif stability.v_norm == "width":
            self.v_norm = AxesNorm(stability.norm, (kv_heads, head_width), eps)

    def new_state(self, batch: int, dtype: torch.dtype, formats: StateFormats = AS_COMPUTED) -> KVState:
        device = self.q_proj.weight.device
        if formats.keys_values == "fp8":
            scales = self.k_scale, self.v_scale
            return FP8KVState(batch, self.kv_heads, self.head_width, dtype, device, *scales)
        return KVState(batch, self.kv_heads, self.head_width, dtype, device)

    def new_store(
        self, pages: int, page_tokens: int, dtype: torch.dtype, formats: StateFormats = AS_COMPUTED
    ) -> PagedKV:
        """Memory for all rows of an engine, in pages; raises as `PagedKV`.

        Args:
            dtype: of the activations.
        """
        device, scales = self.q_proj.weight.device, (self.k_scale, self.v_scale)
        sizes = pages, page_tokens, self.kv_heads, self.head_width
        return PagedKV(*sizes, dtype, device, formats.keys_values, *scales)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        documents: Int[Tensor, "B T"] | None = None,
        state: KVState | PagedRows | None = None,
    ) -> Float[Tensor, "B T D"]:
        """
        Args:
            documents: rising document numbers of packed rows; no token sees another document.
            state: earlier keys and values, to which those of `x` are appended.
        """
        q = self.q_norm(self.q_proj(x).unflatten(-1, (self.heads, -1))).transpose(1, 2)
        y = self.attend(q, *self.keys_values(x), documents, state)
        return self.o_proj(y.transpose(1, 2).flatten(-2))

    def remember(self, x: Float[Tensor, "B T D"], state: KVState | PagedRows) -> None:
        """Append to the state what `forward` appends."""
        state.append(*self.keys_values(x))

    def keys_values(self, x: Float[Tensor, "B T D"]) -> tuple[Float[Tensor, "B G T K"], Float[Tensor, "B G T K"]]:
        """Keys and values of `x`, as attention sees them."""
        k = self.k_norm(self.k_proj(x).unflatten(-1, (self.kv_heads, -1))).transpose(1, 2)
        v = self.v_norm(self.v_proj(x).unflatten(-1, (self.kv_heads, -1))).transpose(1, 2)
        return k, v

    def attend(
        self,
        q: Float[Tensor, "B H T K"],
        k: Float[Tensor, "B G T K"],
        v: Float[Tensor, "B G T K"],
        documents: Int[Tensor, "B T"] | None,
        state: KVState | PagedRows | None,
    ) -> Float[Tensor, "B H T K"]:
        """What mixes tokens, between the projections."""
        if isinstance(state, PagedRows):
            assert documents is None, "pages hold rows of one document"
            return state.append_and_attend(q, k, v, self.shaping)
        lengths = None
        if state is not None:
            lengths = state.lengths
            k, v = state.append(k, v)
        return attention(q, k, v, documents, lengths, self.shaping)
