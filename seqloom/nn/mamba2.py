"""The Mamba-2 mixer: projection, short convolution, selective state-space scan, gated norm, projection.

Per head, with one scalar decay A < 0:   S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T,   y_t = S_t C_t + D x_t.
The gate multiplies before the grouped norm, and dt is softplus(dt + bias) with no floor or cap.

Paper: Mamba-2 (SSD); sizes and parameter names as in the Nemotron-H checkpoints.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqloom.nn.linear import Linear
from seqloom.nn.mamba_slots import MambaRows, MambaSlots, SlotShape
from seqloom.nn.narrow_state import NarrowMambaState
from seqloom.nn.norm import GatedGroupRMSNorm
from seqloom.nn.state import MambaState
from seqloom.nn.state_formats import AS_COMPUTED, StateFormats
from seqloom.ops.causal_conv import causal_conv
from seqloom.ops.ssd import slices, ssd


class DepthwiseConv(nn.Module):
    """Taps and bias of a causal depthwise convolution, shaped as `conv1d` is stored; the last tap is the present."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, taps))
        self.bias = nn.Parameter(torch.empty(channels))

    def initialise(self, std: float, layers: int) -> None:
        bound = self.weight.shape[-1] ** -0.5  # Kaiming uniform with one input channel per filter
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)


class ScanWeights(NamedTuple):
    """The parameters of what mixes tokens: of all heads, or of some with the channels that they read."""

    taps: Float[Tensor, "C W"]
    bias: Float[Tensor, "C"]
    dt_bias: Float[Tensor, "H"]
    A_log: Float[Tensor, "H"]
    D: Float[Tensor, "H"]


class Mamba2(nn.Module):
    """One Mamba-2 mixer; remembers a convolution window and an SSM state."""

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        state_width: int,
        groups: int,
        conv_width: int,
        chunk: int,
        eps: float,
    ) -> None:
        super().__init__()
        self.heads, self.head_width, self.state_width, self.groups, self.chunk = (
            heads, head_width, state_width, groups, chunk,
        )  # fmt: skip
        self.inner = heads * head_width
        self.conv_channels = self.inner + 2 * groups * state_width
        self.in_proj = Linear(width, self.inner + self.conv_channels + heads)
        self.conv1d = DepthwiseConv(self.conv_channels, conv_width)
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.norm = GatedGroupRMSNorm(self.inner, groups, eps)
        self.out_proj = Linear(self.inner, width, residual_output=True)

    def initialise(self, std: float, layers: int) -> None:
        """A uniform in [1, 16]; dt log-uniform in [1e-3, 1e-1] through the inverse softplus (Mamba-2; Megatron)."""
        with torch.no_grad():
            self.A_log.uniform_(1, 16).log_()
            self.D.fill_(1)
            dt = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp_().clamp_(min=1e-4)
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def new_state(
        self, batch: int, dtype: torch.dtype, formats: StateFormats = AS_COMPUTED, place: str = ""
    ) -> MambaState | NarrowMambaState:
        """An empty memory; the SSM state is FP32 in every activation format, unless `formats` narrows it.

        Args:
            place: of the layer in its model; stochastic rounding draws other numbers in every place.
        """
        device = self.D.device
        window = torch.zeros(batch, self.conv1d.weight.shape[-1] - 1, self.conv_channels, dtype=dtype, device=device)
        ssm = torch.zeros(batch, self.heads, self.head_width, self.state_width, device=device)
        if formats.ssm == "fp32":
            return MambaState(window, ssm)
        return NarrowMambaState(window, ssm, formats.ssm, formats.seed, place)

    def new_store(self, rows: int, dtype: torch.dtype, formats: StateFormats, place: str, ahead: int) -> MambaSlots:
        """Empty memory for the rows of an engine; arguments as in `MambaSlots`."""
        taps = self.conv1d.weight.shape[-1]
        shape = SlotShape(self.heads, self.head_width, self.state_width, self.groups, taps, self.chunk)
        return MambaSlots(rows, shape, dtype, self.D.device, formats, place, ahead)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        documents: Int[Tensor, "B T"] | None = None,
        state: MambaState | NarrowMambaState | MambaRows | None = None,
    ) -> Float[Tensor, "B T D"]:
        """
        Args:
            documents: rising document numbers of packed rows; state and window are reset where they change.
            state: continues from it and leaves the state after the last token in it.
        """
        z, xbc, dt = self.in_proj(x).split([self.inner, self.conv_channels, self.heads], dim=-1)
        weights = ScanWeights(self.conv1d.weight[:, 0], self.conv1d.bias, self.dt_bias, self.A_log, self.D)
        if isinstance(state, MambaRows):
            assert documents is None, "a slot remembers one document"
            y = state.mix(xbc, dt, *weights)
        else:
            y = self.mix(xbc, dt, documents, state, weights)
        return self.out_proj(self.norm(y, z))

    def mix(
        self,
        xbc: Float[Tensor, "B T C"],
        dt: Float[Tensor, "B T H"],
        documents: Int[Tensor, "B T"] | None,
        state: MambaState | NarrowMambaState | None,
        weights: ScanWeights,
    ) -> Float[Tensor, "B T I"]:
        """What mixes tokens, between the projection and the gate: convolution, scan, and the skip by D."""
        xbc, window = causal_conv(xbc, weights.taps, weights.bias, state.window if state else None, documents)
        inner = dt.shape[-1] * self.head_width
        shared = (xbc.shape[-1] - inner) // 2
        u, b, c = slices(xbc, (inner, shared, shared))
        u = u.unflatten(-1, (-1, self.head_width))
        b, c = (part.unflatten(-1, (-1, self.state_width)) for part in (b, c))
        a = -torch.exp(weights.A_log.float())
        scan = partial(ssd, chunk=self.chunk, dt_bias=weights.dt_bias, skip=weights.D)
        if isinstance(state, NarrowMambaState):
            assert documents is None, "a narrow state remembers one document a row"
            state.window = window
            return self._token_by_token(scan, u, dt, a, b, c, state).flatten(-2)
        y, ssm = scan(u, dt, a, b, c, state.ssm if state else None, documents)
        if state is not None:
            state.window, state.ssm = window, ssm
        return y.flatten(-2)

    def _token_by_token(
        self,
        scan: Callable[..., tuple[Tensor, Tensor]],
        u: Float[Tensor, "B T H P"],
        dt: Float[Tensor, "B T H"],
        a: Float[Tensor, "H"],
        b: Float[Tensor, "B T G N"],
        c: Float[Tensor, "B T G N"],
        state: NarrowMambaState,
    ) -> Float[Tensor, "B T H P"]:
        """The scan with its state rounded between any two tokens, whether they come in one call or in many."""
        outputs = []
        for t in range(u.shape[1]):
            now = slice(t, t + 1)
            y, ssm = scan(u[:, now], dt[:, now], a, b[:, now], c[:, now], state.read(), None)
            state.write(ssm)
            outputs.append(y)
        return torch.cat(outputs, dim=1)
