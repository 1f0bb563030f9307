"""The causal convolution with SiLU on a GPU, as fast as memory.

A program owns a tile of positions and channels and reads its inputs once per tap, nearly always from the cache. The
backward pass takes two steps: the gradient before the activation, whose value is computed anew, then the gradient of
the inputs. The first also sums ∂weight and ∂bias over the tiles of a program; torch adds up the programs' sums, always
in the same order.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqloom.ops.triton.tiles import launch, power_of_two, unit_stride

_POSITIONS = 16  # of a tile
_CHANNELS = 128
_TILES = 8  # that a program walks over where it sums ∂weight


def causal_conv_triton(
    x: Float[Tensor, "B T C"],
    weight: Float[Tensor, "C K"],
    bias: Float[Tensor, "C"],
    window: Float[Tensor, "B W C"],
    numbers: Int[Tensor, "B W+T"] | None,
) -> Float[Tensor, "B T C"]:
    """The convolution in Triton; arguments as in `seqloom.ops.causal_conv.causal_conv_reference`."""
    return _Conv.apply(x, weight, bias, window.to(x.dtype), numbers)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, window: Tensor, numbers: Tensor | None) -> Tensor:
        numbers = None if numbers is None else numbers.int().contiguous()
        ctx.save_for_backward(x, weight, bias, window, numbers)
        x, window = unit_stride(x), unit_stride(window)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        channels = min(_CHANNELS, power_of_two(x.shape[2]))
        B, T, C = x.shape
        launch(
            _forward, (-(-T // _POSITIONS), -(-C // channels), B), x, weight.mT.contiguous(), bias, window, numbers, y,
            T, C, *x.stride()[:2], *window.stride()[:2],
            K=weight.shape[1], BT=_POSITIONS, BC=channels, DOCUMENTS=numbers is not None, warps=4,
        )  # fmt: skip
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, window, numbers = ctx.saved_tensors
        x, window, dy = unit_stride(x), unit_stride(window), unit_stride(dy)
        channels = min(_CHANNELS, power_of_two(x.shape[2]))
        B, T, C = x.shape
        K = weight.shape[1]
        taps = weight.mT.contiguous()
        walks = -(-T // (_POSITIONS * _TILES))
        dtaps = torch.empty(B, walks, K + 1, C, device=x.device)  # the last for the bias
        dtotal = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        sizes: dict[str, Any] = {"K": K, "BT": _POSITIONS, "BC": channels, "DOCUMENTS": numbers is not None, "warps": 4}
        launch(
            _before_activation, (walks, -(-C // channels), B), x, taps, bias, window, numbers, dy, dtotal, dtaps,
            T, C, *x.stride()[:2], *window.stride()[:2], *dy.stride()[:2],
            TILES=_TILES, SHARES=power_of_two(K + 1, 1), **sizes,
        )  # fmt: skip
        dx, dwindow = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, window))
        grid = (-(-(T + K - 1) // _POSITIONS), -(-C // channels), B)
        launch(_inputs, grid, dtotal, taps, numbers, dx, dwindow, T, C, **sizes)
        dtaps = dtaps.sum((0, 1))
        return dx, dtaps[:K].mT.to(weight.dtype), dtaps[K].to(bias.dtype), dwindow, None


@triton.jit
@no_type_check
def _input(x, window, position, channel, there, x_time, window_time, W: tl.constexpr):
    """Inputs at positions that count from the first of the window."""
    t = position - W
    recent = tl.load(x + t[:, None] * x_time + channel, mask=there & (t >= 0)[:, None], other=0.0)
    if tl.min(t, 0) >= 0:
        early = tl.zeros_like(recent)
    else:
        early = tl.load(window + position[:, None] * window_time + channel, mask=there & (t < 0)[:, None], other=0.0)
    return tl.where((t >= 0)[:, None], recent, early).to(tl.float32)


@triton.jit
@no_type_check
def _weighted_sum(
    x, taps, bias, window, numbers, t, present, channel, there, length, C, x_time, window_time,
    K: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """What enters the activation at positions t."""
    total = tl.zeros([BT, BC], tl.float32) + tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32)
    for k in tl.static_range(K):
        tap = tl.load(taps + k * C + channel, mask=channel < C, other=0.0).to(tl.float32)
        seen = _seen(numbers, t + k, present, there, length, DOCUMENTS)
        total += tap * _input(x, window, t + k, channel, seen, x_time, window_time, K - 1)
    return total


@triton.jit
@no_type_check
def _seen(numbers, position, present, there, length, DOCUMENTS: tl.constexpr):
    """Where the inputs at some positions lie in the documents of the present ones."""
    if DOCUMENTS:
        other = tl.load(numbers + position, mask=(position >= 0) & (position < length), other=-1)
        there &= (other == present)[:, None]
    return there


@triton.jit
@no_type_check
def _forward(
    x, taps, bias, window, numbers, y, T, C, x_row, x_time, window_row, window_time,
    K: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    channel = (tl.program_id(1) * BC + tl.arange(0, BC))[None, :]
    there = (t < T)[:, None] & (channel < C)
    x, window = x + row * x_row, window + row * window_row
    present = t
    if DOCUMENTS:
        numbers += row * (T + K - 1)
        present = tl.load(numbers + t + K - 1, mask=t < T, other=-1).to(tl.int64)
    total = _weighted_sum(
        x,
        taps,
        bias,
        window,
        numbers,
        t,
        present,
        channel,
        there,
        T + K - 1,
        C,
        x_time,
        window_time,
        K,
        BT,
        BC,
        DOCUMENTS,
    )
    result = total / (1 + tl.exp(-total))
    if DOCUMENTS:
        result = tl.where((present >= 0)[:, None], result, 0.0)
    tl.store(y + (row * T + t[:, None]) * C + channel, result.to(y.dtype.element_ty), mask=there)


@triton.jit
@no_type_check
def _before_activation(
    x, taps, bias, window, numbers, dy, dtotal, dtaps, T, C,
    x_row, x_time, window_row, window_time, dy_row, dy_time,
    K: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, TILES: tl.constexpr, SHARES: tl.constexpr,
    DOCUMENTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(2).to(tl.int64)
    channel = (tl.program_id(1) * BC + tl.arange(0, BC))[None, :]
    x, window, dy = x + row * x_row, window + row * window_row, dy + row * dy_row
    if DOCUMENTS:
        numbers += row * (T + K - 1)
    tap = tl.arange(0, SHARES)[:, None]
    share = tl.zeros([SHARES, BC], tl.float32)
    for tile in range(TILES):
        t = (tl.program_id(0).to(tl.int64) * TILES + tile) * BT + tl.arange(0, BT)
        there = (t < T)[:, None] & (channel < C)
        present = t
        if DOCUMENTS:
            present = tl.load(numbers + t + K - 1, mask=t < T, other=-1).to(tl.int64)
        total = _weighted_sum(
            x, taps, bias, window, numbers, t, present, channel, there, T + K - 1, C, x_time, window_time, K, BT, BC,
            DOCUMENTS,
        )  # fmt: skip
        gate = 1 / (1 + tl.exp(-total))
        change = tl.load(dy + t[:, None] * dy_time + channel, mask=there, other=0.0).to(tl.float32)
        change *= gate * (1 + total * (1 - gate))
        if DOCUMENTS:
            change = tl.where((present >= 0)[:, None], change, 0.0)
        tl.store(dtotal + (row * T + t[:, None]) * C + channel, change.to(dtotal.dtype.element_ty), mask=there)
        share += tl.where(tap == K, tl.sum(change, 0)[None, :], 0.0)
        for k in tl.static_range(K):
            seen = _seen(numbers, t + k, present, there, T + K - 1, DOCUMENTS)
            read = _input(x, window, t + k, channel, seen, x_time, window_time, K - 1)
            share += tl.where(tap == k, tl.sum(change * read, 0)[None, :], 0.0)
    target = dtaps + ((row * tl.num_programs(0) + tl.program_id(0)) * (K + 1) + tap) * C + channel
    tl.store(target, share, mask=(tap <= K) & (channel < C))


@triton.jit
@no_type_check
def _inputs(
    dtotal, taps, numbers, dx, dwindow, T, C,
    K: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(2).to(tl.int64)
    position = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)  # counted from the first of the window
    channel = (tl.program_id(1) * BC + tl.arange(0, BC))[None, :]
    mine = position
    if DOCUMENTS:
        numbers += row * (T + K - 1)
        mine = tl.load(numbers + position, mask=position < T + K - 1, other=-1).to(tl.int64)
    total = tl.zeros([BT, BC], tl.float32)
    for k in tl.static_range(K):
        t = position - k  # the output that sees this input through tap k
        there = ((t >= 0) & (t < T))[:, None] & (channel < C)
        seen = _seen(numbers, t + K - 1, mine, there, T + K - 1, DOCUMENTS)
        change = tl.load(dtotal + (row * T + t[:, None]) * C + channel, mask=seen, other=0.0).to(tl.float32)
        total += change * tl.load(taps + k * C + channel, mask=channel < C, other=0.0).to(tl.float32)
    t = position - (K - 1)
    there = (t < T)[:, None] & (channel < C)
    target = dx + (row * T + t[:, None]) * C + channel
    tl.store(target, total.to(dx.dtype.element_ty), mask=there & (t >= 0)[:, None])
    target = dwindow + (row * (K - 1) + position[:, None]) * C + channel
    tl.store(target, total.to(dwindow.dtype.element_ty), mask=there & (t < 0)[:, None])
