"""Connectionist temporal classification on a GPU: what belongs to single frames in parallel, what is a recursion once
for every utterance.

A program owns an utterance and sweeps its frames one by one, all states of a frame at once, in registers: blanks and
labels apart, as in the C++ form, so that a frame is two sums of two logarithms. Frames are measured from the greatest
state of the one before. Posteriors of equal labels are summed by key after one sort of the labels of an utterance, so
nothing is added atomically, and only the logits of labels are read again. Paper: Deep Speech 2, section 4.2 (GPU CTC).
"""

from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqloom.ops.triton.tiles import launch, power_of_two, unit_stride

_NEVER = tl.constexpr(-1e30)


def ctc_loss_triton(
    logits: Float[Tensor, "B T V"],
    lengths: Int[Tensor, "B"],
    targets: Int[Tensor, "B L"],
    target_lengths: Int[Tensor, "B"],
    blank: int = 0,
) -> Float[Tensor, "B"]:
    """Arguments and results as in `seqloom.ops.ctc.ctc_loss`."""
    ready = _Ready(unit_stride(logits), lengths, targets.contiguous(), target_lengths, blank)
    if torch.is_grad_enabled() and logits.requires_grad:
        return _CTC.apply(*ready)
    return _forward(ready, keep=False)[0]


class _Ready(NamedTuple):
    logits: Tensor
    lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    blank: int

    def block(self) -> int:
        return power_of_two(self.targets.shape[1] + 1)

    def warps(self) -> int:
        """Of a sweep: few, as they wait for one another at every frame."""
        return min(8, max(1, self.block() // 256))


class _CTC(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *ready: Any) -> Tensor:
        ctx.blank = ready[-1]
        nats, *kept = _forward(_Ready(*ready), keep=True)
        ctx.save_for_backward(*ready[:-1], *kept)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dnats: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, norms, swept, states = ctx.saved_tensors
        ready = _Ready._make([*tensors, ctx.blank])
        return _backward(ready, norms, swept, states, dnats.contiguous()), None, None, None, None


def _forward(
    ready: _Ready, *, keep: bool
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B T 2"], Int[Tensor, "B"], Float[Tensor, "B T 2 S"] | None]:
    """Costs, the numbers that make a softmax of every frame, how many frames count (none of an impossible row), and the
    states of all frames if they are to be kept."""
    logits, lengths, targets, target_lengths, blank = ready
    (B, T, V), device = logits.shape, logits.device
    nats, norms = torch.zeros(B, device=device), torch.empty(B, T, 2, device=device)
    swept = torch.zeros(B, dtype=torch.int32, device=device)
    states = torch.empty(B, T, 2, ready.block(), device=device) if keep else None
    if B * T:
        launch(
            _normalise, (B * T,), logits, norms, lengths, T, V, logits.stride(0), logits.stride(1),
            BLOCK=min(2048, power_of_two(V)), warps=4,
        )  # fmt: skip
        launch(
            _costs, (B,), logits, norms, lengths, targets, target_lengths, nats, swept, states, T, targets.shape[1],
            logits.stride(0), logits.stride(1), blank, BLOCK=ready.block(), KEEP=keep, warps=ready.warps(),
        )  # fmt: skip
    return nats, norms, swept, states


def _backward(
    ready: _Ready,
    norms: Float[Tensor, "B T 2"],
    swept: Int[Tensor, "B"],
    states: Float[Tensor, "B T 2 S"],
    dnats: Float[Tensor, "B"],
) -> Float[Tensor, "B T V"]:
    logits, _, targets, target_lengths, blank = ready
    (B, T, V), (L, device) = logits.shape, (targets.shape[1], logits.device)
    dlogits = torch.empty(B, T, V, dtype=logits.dtype, device=device)
    if not B * T:
        return dlogits
    strides = logits.stride(0), logits.stride(1)
    on_labels = torch.empty(B, T, ready.block(), device=device)
    on_blank = torch.empty(B, T, device=device)
    used = torch.arange(L, device=device) < target_lengths[:, None]
    keys, order = torch.where(used, targets, V).sort(dim=1, stable=True)
    launch(
        _posteriors, (B,), logits, norms, swept, targets, target_lengths, states, on_labels, on_blank, T, L, *strides,
        blank, BLOCK=ready.block(), warps=ready.warps(),
    )  # fmt: skip
    launch(
        _softmax, (B * T,), logits, norms, swept, dnats, dlogits, T, V, *strides,
        BLOCK=min(2048, power_of_two(V)), warps=4,
    )  # fmt: skip
    launch(
        _corrections, (B * T,), logits, norms, swept, dnats, keys, order, on_labels, on_blank, dlogits, T, V, L,
        *strides, blank, BLOCK=ready.block(), warps=4,
    )  # fmt: skip
    return dlogits


@triton.jit
@no_type_check
def _normalise(logits, norms, lengths, T, V, row_stride, frame_stride, BLOCK: tl.constexpr):
    """The greatest logit of a frame, and ln Σ exp(x - greatest)."""
    program = tl.program_id(0).to(tl.int64)
    row, t = program // T, program % T
    if t < tl.load(lengths + row):
        logits += row * row_stride + t * frame_stride
        column = tl.arange(0, BLOCK)
        largest = tl.full([BLOCK], -3.4e38, tl.float32)  # of every lane, so that only the end compares across them
        total = tl.zeros([BLOCK], tl.float32)
        for first in range(0, V, BLOCK):
            x = tl.load(logits + first + column, mask=first + column < V, other=float("-inf")).to(tl.float32)
            higher = tl.maximum(largest, x)
            total = total * tl.exp(largest - higher) + tl.exp(x - higher)
            largest = higher
        top = tl.max(largest, 0)
        tl.store(norms + 2 * program, top)
        tl.store(norms + 2 * program + 1, tl.log(tl.sum(total * tl.exp(largest - top), 0)))


@triton.jit
@no_type_check
def _add(a, b):
    """ln(exp(a) + exp(b))."""
    return tl.maximum(a, b) + tl.log(1 + tl.exp(-tl.abs(a - b)))


@triton.jit
@no_type_check
def _read(logits, norms, t, frames, index, frame_stride):
    """ln y_t of some symbols; beyond the last frame, whose successor nobody needs, that one again."""
    t = tl.maximum(tl.minimum(t, frames - 1), 0)
    x = tl.load(logits + t * frame_stride + index).to(tl.float32)
    y = (x - tl.load(norms + 2 * t)) - tl.load(norms + 2 * t + 1)
    return tl.where(y < _NEVER, _NEVER, y)


@triton.jit
@no_type_check
def _costs(
    logits, norms, lengths, targets, target_lengths, nats, swept, states, T, L, row_stride, frame_stride, blank,
    BLOCK: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    norms += row * T * 2
    targets += row * L
    if KEEP:
        states += row * T * 2 * BLOCK
    place = tl.arange(0, BLOCK)
    frames, count = tl.load(lengths + row).to(tl.int32), tl.load(target_lengths + row).to(tl.int32)
    here = place < count
    symbol = tl.load(targets + place, mask=here, other=0)
    later = here & (place > 0)
    skip = later & (symbol != tl.load(targets + place - 1, mask=later, other=0))
    needed = count + tl.sum((later & ~skip).to(tl.int32), 0)
    frames = tl.where(needed <= frames, frames, 0)
    tl.store(swept + row, frames)
    before = tl.maximum(place - 1, 0)
    y_blank = _read(logits, norms, 0, frames, blank, frame_stride)
    y_label = tl.where(here, _read(logits, norms, 0, frames, symbol, frame_stride), _NEVER)
    blanks = tl.where(place == 0, y_blank, _NEVER)
    labels = tl.where(place == 0, y_label, _NEVER)
    total = tl.full([], 0.0, tl.float64)
    for t in range(0, frames):
        if t > 0:
            shift = tl.max(tl.maximum(blanks, labels), 0)
            total += shift
            both = _add(blanks, tl.where(place == 0, _NEVER, tl.gather(labels, before, 0)))
            labels = _add(labels, tl.where(skip, both, blanks)) + (y_label - shift)
            blanks = both + (y_blank - shift)
        y_blank = _read(logits, norms, t + 1, frames, blank, frame_stride)  # of the next, while this one runs
        y_label = tl.where(here, _read(logits, norms, t + 1, frames, symbol, frame_stride), _NEVER)
        if KEEP:
            tl.store(states + t * 2 * BLOCK + place, blanks)
            tl.store(states + t * 2 * BLOCK + BLOCK + place, labels)
    end = tl.sum(tl.where(place == count, blanks, 0.0), 0)
    end = _add(end, tl.sum(tl.where(place == count - 1, labels, 0.0), 0) + tl.where(count > 0, 0.0, _NEVER))
    cost = -(total + end)
    tl.store(nats + row, tl.where(frames > 0, tl.where(cost > 1e29, float("inf"), cost.to(tl.float32)), 0.0))


@triton.jit
@no_type_check
def _posteriors(
    logits, norms, swept, targets, target_lengths, states, on_labels, on_blank, T, L, row_stride, frame_stride, blank,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The share of every label and of all blanks in the paths through every frame."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    norms += row * T * 2
    targets += row * L
    states += row * T * 2 * BLOCK
    on_labels += row * T * BLOCK
    on_blank += row * T
    place = tl.arange(0, BLOCK)
    frames, count = tl.load(swept + row), tl.load(target_lengths + row).to(tl.int32)
    here = place < count
    symbol = tl.load(targets + place, mask=here, other=0)
    follows = place + 1 < count
    skip = follows & (symbol != tl.load(targets + place + 1, mask=follows, other=0))  # the blank behind
    after = tl.minimum(place + 1, BLOCK - 1)
    blanks = tl.where(place == count, 0.0, _NEVER)
    labels = tl.where(place == count - 1, 0.0, _NEVER)
    for step in range(0, frames):
        t = frames - 1 - step
        y_blank = _read(logits, norms, t, frames, blank, frame_stride)
        y_label = tl.where(here, _read(logits, norms, t, frames, symbol, frame_stride), _NEVER)
        through_blanks = tl.load(states + t * 2 * BLOCK + place) + blanks
        through_labels = tl.load(states + t * 2 * BLOCK + BLOCK + place) + labels
        top = tl.max(tl.maximum(through_blanks, through_labels), 0)
        on_blanks, posterior = tl.exp(through_blanks - top), tl.exp(through_labels - top)
        some = tl.sum(on_blanks, 0)
        total = some + tl.sum(posterior, 0)
        tl.store(on_blank + t, some / total)
        tl.store(on_labels + t * BLOCK + place, posterior / total)
        shift = tl.max(tl.maximum(blanks, labels), 0)
        blanks += y_blank - shift
        labels += y_label - shift
        entering = _add(blanks, labels)
        labels = _add(labels, tl.where(skip, tl.gather(entering, after, 0), tl.gather(blanks, after, 0)))
        blanks = entering


@triton.jit
@no_type_check
def _softmax(logits, norms, swept, dnats, dlogits, T, V, row_stride, frame_stride, BLOCK: tl.constexpr):
    """The gradient of a frame but for the posteriors."""
    program = tl.program_id(0).to(tl.int64)
    row, t = program // T, program % T
    there = t < tl.load(swept + row)
    logits += row * row_stride + t * frame_stride
    peak, rest = tl.load(norms + 2 * program), tl.load(norms + 2 * program + 1)
    factor, inside = tl.load(dnats + row), tl.where(there, V, 0)
    column = tl.arange(0, BLOCK)
    for first in range(0, V, BLOCK):
        x = tl.load(logits + first + column, mask=first + column < inside, other=0.0).to(tl.float32)
        dx = tl.where(there, tl.exp((x - peak) - rest) * factor, 0.0)
        tl.store(dlogits + program * V + first + column, dx.to(dlogits.dtype.element_ty), mask=first + column < V)


@triton.jit
@no_type_check
def _by_key(a, a_key, b, b_key):
    return tl.where(a_key == b_key, a, 0.0) + b, b_key


@triton.jit
@no_type_check
def _corrections(
    logits, norms, swept, dnats, keys, order, on_labels, on_blank, dlogits, T, V, L, row_stride, frame_stride, blank,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of a frame by the blank and by its labels, each of which the last of equal keys writes."""
    program = tl.program_id(0).to(tl.int64)
    row, t = program // T, program % T
    if t < tl.load(swept + row):
        logits += row * row_stride + t * frame_stride
        dlogits += program * V
        peak, rest = tl.load(norms + 2 * program), tl.load(norms + 2 * program + 1)
        factor = tl.load(dnats + row)
        place = tl.arange(0, BLOCK)
        key = tl.load(keys + row * L + place, mask=place < L, other=V)
        used = key < V
        index = tl.load(order + row * L + place, mask=used, other=0)
        posterior = tl.load(on_labels + program * BLOCK + index, mask=used, other=0.0)
        sums, _ = tl.associative_scan((posterior, key), 0, _by_key)
        last = used & (key != tl.load(keys + row * L + place + 1, mask=place + 1 < L, other=V))
        y = tl.exp((tl.load(logits + key, mask=last, other=0.0).to(tl.float32) - peak) - rest)
        tl.store(dlogits + key, ((y - sums) * factor).to(dlogits.dtype.element_ty), mask=last)
        y = tl.exp((tl.load(logits + blank).to(tl.float32) - peak) - rest)
        tl.store(dlogits + blank, ((y - tl.load(on_blank + program)) * factor).to(dlogits.dtype.element_ty))
