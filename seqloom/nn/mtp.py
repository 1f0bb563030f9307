"""Multi-token prediction: one physical block, applied again and again to look further ahead.

    g   = W_eh · [RMSNorm_e(Emb(token_{t+k})) ; RMSNorm_h(h^{k-1}_t)]      embedding first
    h^k = RMSNorm_final(layers(g))                                         predicts token_{t+k+1}

h^0 is the backbone's output after its final norm; embedding and head are the backbone's own. Training chains the
depths; drafting starts from a true backbone state and then feeds the block its own output.
Paper: Nemotron 3 white paper and Super, MTP sections.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqloom.nn.layer import Layer, Memory, Stack
from seqloom.nn.linear import Linear
from seqloom.nn.moe import Routing
from seqloom.nn.norm import RMSNorm
from seqloom.nn.stack_step import few_tokens_of_rows
from seqloom.nn.state_formats import AS_COMPUTED, StateFormats
from seqloom.nn.stores import PageStore, Room, SlotStore
from seqloom.numerics.precision import Format, dtype_of


class MtpBlock(nn.Module):
    """The shared prediction block; tensor names are those of the public files (fusion parts on the first layer)."""

    def __init__(self, width: int, layers: list[Layer], eps: float) -> None:
        super().__init__()
        self.layers = Stack(layers)
        layers[0].eh_proj = Linear(2 * width, width)
        layers[0].enorm = RMSNorm(width, eps)
        layers[0].hnorm = RMSNorm(width, eps)
        layers[-1].final_layernorm = RMSNorm(width, eps)
        self.format: Format = "fp32"  # of what its attention remembers
        self.state_formats: StateFormats = AS_COMPUTED

    def new_stores(self, room: Room) -> list[PageStore | SlotStore | None]:
        """Empty memory for drafting in all rows of an engine."""
        dtype, formats = dtype_of(self.format), self.state_formats
        return [layer.new_store(room, dtype, formats, f"mtp.{index}") for index, layer in enumerate(self.layers)]

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        embedded: Float[Tensor, "B T D"],
        documents: Int[Tensor, "B T"] | None = None,
        states: list[Memory | None] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], list[Routing]]:
        """
        Args:
            hidden: h^{k-1}, after a final norm.
            embedded: embedding of the token k positions ahead; zeros where there is none.
        """
        first: Any = self.layers[0]
        last: Any = self.layers[-1]
        x = first.eh_proj(torch.cat([first.enorm(embedded), first.hnorm(hidden)], dim=-1)).to(hidden.dtype)
        if states is not None and documents is None:
            y = few_tokens_of_rows(self.layers, last.final_layernorm, x, states)
            if y is not None:
                return y, []
        routings: list[Routing] = []
        for layer, state in zip(self.layers, states or [None] * len(self.layers), strict=True):
            x, routing = layer(x, documents, state)
            if routing is not None:
                routings.append(routing)
        return last.final_layernorm(x), routings
