"""The chunked scan on a GPU: the passes of `ssd_kernels` in order, and what they keep.

States go through memory once per piece, in the format of x, so pieces are as long as the GPU allows. Nothing but the
inputs is kept for the backward pass; it computes decays and states anew, in pieces of its own.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqloom.ops.triton import ssd_kernels as kernels
from seqloom.ops.triton.tiles import launch, power_of_two, precision, unit_stride

_PROGRAMS = 256
"""Enough programs to fill a large GPU; where pieces and groups are fewer, the heads of a group are divided."""

_MOST_BYTES = 2**16
"""Of a head's state: tiles with all of it, three copies of each in FP32, lie in shared memory."""


def serves(x: Float[Tensor, "B T H P"], b: Float[Tensor, "B T G N"]) -> bool:
    """Whether heads and states are narrow enough."""
    return power_of_two(x.shape[3]) * power_of_two(b.shape[3]) * x.itemsize <= _MOST_BYTES


def ssd_triton(
    x: Float[Tensor, "B T H P"],
    dt: Float[Tensor, "B T H"],
    a: Float[Tensor, "H"],
    b: Float[Tensor, "B T G N"],
    c: Float[Tensor, "B T G N"],
    state: Float[Tensor, "B H P N"] | None = None,
    documents: Int[Tensor, "B T"] | None = None,
    *,
    chunk: int,
    skip: Float[Tensor, "H"] | None = None,
) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B H P N"]]:
    """The scan in Triton; arguments and results as in `seqloom.ops.ssd.ssd`."""
    assert x.shape[2] % b.shape[2] == 0, f"{x.shape[2]} heads cannot be split into {b.shape[2]} groups"
    dt, a, b, c = dt.float(), a.float(), b.to(x.dtype), c.to(x.dtype)
    skip = None if skip is None else skip.float()
    if state is None:
        state = torch.zeros(x.shape[0], *x.shape[2:], b.shape[3], device=x.device)
    if x.shape[1] == 1 and documents is None and not torch.is_grad_enabled():
        return _step(x, dt, a, b, c, state.float(), skip)
    start = None
    if documents is not None:
        dt = torch.where(documents[..., None] < 0, 0.0, dt)
        start = _starts(documents)
    return _Scan.apply(x, dt, a, b, c, state.float(), skip, start, chunk)


def _step(
    x: Float[Tensor, "B 1 H P"],
    dt: Float[Tensor, "B 1 H"],
    a: Float[Tensor, "H"],
    b: Float[Tensor, "B 1 G N"],
    c: Float[Tensor, "B 1 G N"],
    state: Float[Tensor, "B H P N"],
    skip: Float[Tensor, "H"] | None,
) -> tuple[Float[Tensor, "B 1 H P"], Float[Tensor, "B H P N"]]:
    """One token; the given state is left untouched."""
    x, b, c, dt = (unit_stride(t) for t in (x, b, c, dt))
    B, _, H, P = x.shape
    G, N = b.shape[2:]
    y, after = torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty(state.shape, device=x.device)
    tile = min(16, power_of_two(P))
    launch(
        kernels.step, (B * H, -(-P // tile)), x, dt, a, b, c, skip, state.contiguous(), y, after, H, H // G,
        x.stride(0), x.stride(2), b.stride(0), b.stride(2), c.stride(0), c.stride(2), dt.stride(0),
        P=P, N=N, BP=tile, BN=power_of_two(N), SKIP=skip is not None, warps=4,
    )  # fmt: skip
    return y, after


def _starts(documents: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Where the document of each position begins; -1 for the one that continues the given state."""
    begins = torch.zeros_like(documents, dtype=torch.bool)
    begins[:, 1:] = (documents[:, 1:] != documents[:, :-1]) & (documents[:, 1:] >= 0)
    place = torch.arange(documents.shape[1], dtype=torch.int32, device=documents.device)
    return torch.where(begins, place, -1).cummax(1).values if documents.numel() else begins.int()


def _longest(x: Float[Tensor, "B T H P"], b: Float[Tensor, "B T G N"], *, forward: bool) -> int:
    """Tokens of the longest piece whose tiles fit in registers and shared memory."""
    wide = b.shape[3] > 128
    if x.dtype == torch.bfloat16 and forward and not wide:
        return 128
    return 32 if x.dtype == torch.float32 and wide and not forward else 64


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        state: Tensor,
        skip: Tensor | None,
        start: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, dt, a, b, c, state, skip, start)
        ctx.chunk = chunk
        x, b, c, dt = (unit_stride(t) for t in (x, b, c, dt))
        setting = _Setting(x, b, start, min(chunk, _longest(x, b, forward=True)))
        alpha = setting.decays(dt, a, start)
        before, final = setting.states(x, dt, b, alpha, start, state)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        launch(
            kernels.outputs, setting.by_group(), x, dt, b, c, skip, *alpha, start, before, y, *setting.sizes,
            setting.heads, *x.stride()[:3], *b.stride()[:3], *c.stride()[:3], *dt.stride()[:2],
            BP=setting.BP, BN=setting.BN, SKIP=skip is not None, **setting.constants,
            warps=8 if setting.Q > 64 else 4, stages=2 if x.dtype == torch.bfloat16 else 1,
        )  # fmt: skip
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, a, b, c, state, skip, start = ctx.saved_tensors
        x, b, c, dt, dy = (unit_stride(t) for t in (x, b, c, dt, dy.to(x.dtype)))
        B, T, H, P = x.shape
        G, N = b.shape[2:]
        setting = _Setting(x, b, start, min(ctx.chunk, _longest(x, b, forward=False)))
        alpha = setting.decays(dt, a, start)
        before, _ = setting.states(x, dt, b, alpha, start, state)
        after, dstate = torch.empty_like(before), torch.empty(state.shape, device=x.device)
        tiles = setting.state_tiles()
        faded = torch.empty(B, setting.pieces, H, tiles[0] * tiles[1], device=x.device)
        launch(
            kernels.dstates, (B * H, *tiles), dy, c, *alpha, start, before, dfinal.contiguous(), after, dstate, faded,
            *setting.sizes, *dy.stride()[:3], *c.stride()[:3],
            BP=setting.tile_P, BN=setting.tile_N, **setting.constants, warps=4, stages=2,
        )  # fmt: skip

        # One block of memory, side by side as x, b and c lie in their projection, so that nobody has to join them.
        inner, shares = H * P, setting.by_group()[2]
        joint = torch.empty(B, T, inner + 2 * G * N, dtype=x.dtype, device=x.device)
        dx, db, dc = joint.split([inner, G * N, G * N], dim=-1)
        dx, db, dc = dx.view(B, T, H, P), db.view(B, T, G, N), dc.view(B, T, G, N)
        db_shares, dc_shares = db[None], dc[None]
        if shares > 1:
            db_shares, dc_shares = torch.empty(2, shares, B, T, G, N, device=x.device)
        ddt, passed = torch.empty(2, B, H, T, device=x.device)
        taken = torch.empty(tiles[1], B, H, T, device=x.device)
        dskip = None if skip is None else torch.empty(B, setting.pieces, H, device=x.device)
        launch(
            kernels.gradients, setting.by_group(), x, dt, b, c, skip, dy, *alpha, start, before, after,
            dx, ddt, passed, taken, db_shares, dc_shares, dskip, *setting.sizes, setting.heads, taken.stride(0),
            *x.stride()[:3], *b.stride()[:3], *c.stride()[:3], *dt.stride()[:2], *dy.stride()[:3],
            *dx.stride()[:2], *db_shares.stride()[:3],
            BP=setting.BP, BN=setting.BN, BS=setting.tile_N, SKIP=skip is not None, **setting.constants,
            warps=4, stages=2 if x.dtype == torch.bfloat16 else 1,
        )  # fmt: skip
        if shares > 1:
            db.copy_(db_shares.sum(0))
            dc.copy_(dc_shares.sum(0))
        faded = faded.sum(-1).transpose(1, 2).repeat_interleave(setting.Q, -1)[..., :T]
        dlog = passed + taken.sum(0) + faded
        ddt = (ddt + a[:, None] * dlog).transpose(1, 2)
        da = (dlog.double() * dt.transpose(1, 2)).sum((0, 2)).to(a.dtype)
        return dx, ddt, da, db, dc, dstate, None if dskip is None else dskip.sum((0, 1)), None, None


class _Setting:
    """Sizes of tiles and grids for one pass, and the launches that both passes begin with."""

    def __init__(self, x: Tensor, b: Tensor, start: Tensor | None, chunk: int) -> None:
        """
        Args:
            chunk: tokens of a piece, rounded down to a power of two.
        """
        self.B, self.T, self.H, self.P = x.shape
        self.G, self.N = b.shape[2:]
        self.BP, self.BN = power_of_two(self.P), power_of_two(self.N)
        self.Q = max(16, 1 << (chunk.bit_length() - 1))
        self.pieces = -(-self.T // self.Q)
        self.tile_P, self.tile_N = min(64, self.BP), min(64, self.BN)
        heads = self.H // self.G
        self.heads = heads  # that one program walks over
        while self.heads % 2 == 0 and self.B * self.pieces * self.G * heads // self.heads < _PROGRAMS:
            self.heads //= 2
        self.sizes = (self.T, self.H, heads, self.pieces)
        self.constants: dict[str, Any] = {
            "P": self.P, "N": self.N, "Q": self.Q, "DOCUMENTS": start is not None, "PRECISION": precision(x.dtype),
        }  # fmt: skip

    def by_group(self) -> tuple[int, int, int]:
        return self.pieces, self.B * self.G, self.H // self.G // self.heads

    def state_tiles(self) -> tuple[int, int]:
        return -(-self.P // self.tile_P), -(-self.N // self.tile_N)

    def decays(self, dt: Tensor, a: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
        coarse, fine = torch.empty(2, self.B, self.H, self.T, device=dt.device)
        launch(
            kernels.decays, (self.pieces, self.B, -(-self.H // 8)), dt, a, start, coarse, fine,
            self.T, self.H, *dt.stride()[:2], Q=self.Q, HEADS=8, DOCUMENTS=start is not None, warps=4,
        )  # fmt: skip
        return coarse, fine

    def states(
        self, x: Tensor, dt: Tensor, b: Tensor, alpha: tuple[Tensor, Tensor], start: Tensor | None, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The state before every piece, in the format of x, and the last in FP32."""
        before = torch.empty(self.B, self.pieces, self.H, self.P, self.N, dtype=x.dtype, device=x.device)
        final = torch.empty(self.B, self.H, self.P, self.N, device=x.device)
        launch(
            kernels.states, (self.B * self.H, *self.state_tiles()), x, dt, b, *alpha, start, state.contiguous(),
            before, final, *self.sizes, *x.stride()[:3], *b.stride()[:3], *dt.stride()[:2],
            BP=self.tile_P, BN=self.tile_N, warps=4, stages=3 if x.dtype == torch.bfloat16 else 2, **self.constants,
        )  # fmt: skip
        return before, final
