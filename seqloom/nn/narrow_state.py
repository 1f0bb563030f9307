"""Layer states that are stored in fewer bits than they are computed in; contracts as in `nn.state`.

Everything is rounded token by token, by rules that know nothing but the token's place in its row. So an answer depends
neither on how its tokens came in, in pieces, one by one, drafted or replayed, nor on the other rows of a batch.
"""

from typing import Any

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from seqloom.core.seeds import derive
from seqloom.nn.narrow import Narrow, NarrowFormat, narrow, rounding_noise, stochastic, widen
from seqloom.nn.state import KVState, MambaState
from seqloom.numerics.elements import E4M3

FP8 = torch.float8_e4m3fn


class FP8KVState(KVState):
    """Keys and values in E4M3, each a code times the scale of its kind; what is asked for comes back in `dtype`."""

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        head_width: int,
        dtype: torch.dtype,
        device: torch.device,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> None:
        super().__init__(batch, kv_heads, head_width, torch.uint8, device)  # FP8 tensors can do next to nothing
        self._computed, self._k_scale, self._v_scale = dtype, k_scale, v_scale

    def append(
        self, keys: Float[Tensor, "B G T K"], values: Float[Tensor, "B G T K"]
    ) -> tuple[Float[Tensor, "B G S K"], Float[Tensor, "B G S K"]]:
        codes = self._write(_codes(keys, self._k_scale), _codes(values, self._v_scale))
        return self._decoded(codes[0], self._k_scale), self._decoded(codes[1], self._v_scale)

    def _decoded(self, codes: Tensor, scale: float) -> Tensor:
        values = codes.view(FP8)
        return values.to(self._computed) if scale == 1 else (values.float() * scale).to(self._computed)


def _codes(x: Tensor, scale: float) -> Tensor:
    return (x.float() / scale).clamp(-E4M3.largest, E4M3.largest).to(FP8).view(torch.uint8)


class NarrowMambaState:
    """Convolution window as computed, and an SSM state that is rounded after every token."""

    def __init__(
        self,
        window: Float[Tensor, "B W C"],
        ssm: Float32[Tensor, "B H P N"],
        format: NarrowFormat,
        seed: int,
        place: str,
    ) -> None:
        """
        Args:
            seed, place: of the model, and of the layer in it; the key of stochastic rounding.
        """
        self.window = window
        self._format: NarrowFormat = format
        self._key = derive(seed, "ssm_state", place)
        self._positions: Int[Tensor, "B"] = torch.zeros(len(window), dtype=torch.int64)  # tokens seen; on the CPU
        self._stored = self._rounded(ssm)

    def read(self) -> Float32[Tensor, "B H P N"]:
        """The SSM state, in memory that nobody else holds."""
        return widen(self._stored)

    def write(self, ssm: Float32[Tensor, "B H P N"]) -> None:
        """Store the SSM state after one more token."""
        self._positions = self._positions + 1
        self._stored = self._rounded(ssm)

    def opened(self) -> MambaState:
        """A plain state for one token; `close` takes it back."""
        return MambaState(self.window, self.read())

    def close(self, state: MambaState) -> None:
        self.window = state.window
        self.write(state.ssm)

    def snapshot(self) -> tuple[Any, ...]:
        return self.window, self._stored, self._positions

    def restore(self, mark: tuple[Any, ...]) -> None:
        self.window, self._stored, self._positions = mark

    def select(self, rows: Int[Tensor, "R"]) -> None:
        codes, scales = self._stored
        self._stored = Narrow(codes[rows], None if scales is None else scales[rows])
        self.window, self._positions = self.window[rows], self._positions[rows.cpu()]

    def join(self, others: list["NarrowMambaState"]) -> None:
        states = [self, *others]
        scales = [state._stored.scales for state in states if state._stored.scales is not None]
        codes = torch.cat([state._stored.codes for state in states])
        self._stored = Narrow(codes, torch.cat(scales) if scales else None)
        self.window = torch.cat([state.window for state in states])
        self._positions = torch.cat([state._positions for state in states])

    @property
    def nbytes(self) -> int:
        codes, scales = self._stored
        return self.window.nbytes + codes.nbytes + (0 if scales is None else scales.nbytes)

    def _rounded(self, ssm: Tensor) -> Narrow:
        noise = None
        if stochastic(self._format):
            noise = rounding_noise(self._key, self._positions, ssm.shape[1:], ssm.device)
        return narrow(ssm, self._format, noise)
