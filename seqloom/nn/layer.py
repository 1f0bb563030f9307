"""One layer of a hybrid stack: x + mixer(norm(x)), whatever the mixer is.

Paper: Nemotron-H, section 2: one mixer per layer, not two. Stability methods may add x + s ∘ norm(mixer(norm(x))).
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqloom.nn.attention import Attention
from seqloom.nn.mamba2 import Mamba2
from seqloom.nn.mamba_slots import MambaRows
from seqloom.nn.mlp import Mlp
from seqloom.nn.moe import MoE, Routing
from seqloom.nn.narrow_state import NarrowMambaState
from seqloom.nn.norm import AxesNorm, RMSNorm
from seqloom.nn.paged_kv import PagedRows
from seqloom.nn.sigma_reparam import reparametrise
from seqloom.nn.stability import PLAIN, Stability
from seqloom.nn.state import KVState, MambaState
from seqloom.nn.state_formats import AS_COMPUTED, StateFormats
from seqloom.nn.step import MOST_ROWS, few_tokens
from seqloom.nn.stores import PageStore, Room, SlotStore

Memory = KVState | MambaState | NarrowMambaState | PagedRows | MambaRows
"""What a mixer may remember: a memory of its own, or rows of an engine's."""


class Layer(nn.Module):
    """Pre-norm residual layer around one mixer."""

    def __init__(
        self, width: int, mixer: Mamba2 | Attention | Mlp | MoE, eps: float, stability: Stability = PLAIN
    ) -> None:
        super().__init__()
        plain = isinstance(mixer, Attention) and not stability.pre_norm
        self.norm = nn.Identity() if plain else RMSNorm(width, eps)
        self.mixer = mixer
        if stability.sigma_reparam:
            reparametrise(mixer)
        normed = stability.output_norm and not isinstance(mixer, Mamba2)  # which norms its output before out_proj
        self.output_norm = AxesNorm(stability.norm, (width,), eps) if normed else nn.Identity()
        self.first_scale = stability.layer_scale
        self.layer_scale = nn.Parameter(torch.empty(width)) if self.first_scale is not None else None

    def initialise(self, std: float, layers: int) -> None:
        if self.layer_scale is not None and self.first_scale is not None:
            nn.init.constant_(self.layer_scale, self.first_scale)

    def new_state(
        self, batch: int, dtype: torch.dtype, formats: StateFormats = AS_COMPUTED, place: str = ""
    ) -> Memory | None:
        """Empty memory for `batch` rows, None where the mixer remembers nothing.

        Args:
            dtype: of the activations.
            place: of the layer in its model; see `Mamba2.new_state`.
        """
        if isinstance(self.mixer, Mamba2):
            return self.mixer.new_state(batch, dtype, formats, place)
        return self.mixer.new_state(batch, dtype, formats) if isinstance(self.mixer, Attention) else None

    def new_store(
        self, room: Room, dtype: torch.dtype, formats: StateFormats = AS_COMPUTED, place: str = ""
    ) -> PageStore | SlotStore | None:
        """Empty memory for all rows of an engine, None where the mixer remembers nothing; arguments as `new_state`."""
        if isinstance(self.mixer, Mamba2):
            return self.mixer.new_store(room.rows, dtype, formats, place, room.ahead)
        if isinstance(self.mixer, Attention):
            return self.mixer.new_store(room.pages, room.page_tokens, dtype, formats)
        return None

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        documents: Int[Tensor, "B T"] | None = None,
        state: Memory | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Routing | None]:
        """
        Returns:
            the new residual stream, and what the router did in expert layers.
        """
        modules: dict[str, Any] = self._modules  # which a token would search three times as attributes
        if documents is None and self.layer_scale is None and type(modules["output_norm"]) is nn.Identity:
            y = few_tokens(modules["norm"], modules["mixer"], x, state)
            if y is not None:
                return y, None
        normed, routing = self.norm(x), None
        if isinstance(self.mixer, MoE):
            y, routing = self.mixer(normed, documents)
        elif isinstance(self.mixer, Mlp):
            y = self.mixer(normed)
        else:
            y = self.mixer(normed, documents, state)
        y = self.output_norm(y)
        if self.layer_scale is not None:
            y = y * self.layer_scale
        return x + y.to(x.dtype), routing

    def remember(self, x: Float[Tensor, "B T D"], state: Memory) -> None:
        """Advance the state as `forward` does, for those who need nothing else of this layer."""
        few = x[..., 0].numel() <= MOST_ROWS  # they go the short way, as ever
        if isinstance(self.mixer, Attention) and isinstance(state, KVState | PagedRows) and not few:
            self.mixer.remember(self.norm(x), state)
        else:
            self(x, None, state)


class Stack(nn.ModuleList):
    """Layers one above the other; a list that knows its element type."""

    def __iter__(self) -> Iterator[Layer]:
        return cast(Iterator[Layer], super().__iter__())
