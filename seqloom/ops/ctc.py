"""Connectionist temporal classification: the cost of a label sequence, summed over everything that it may look like.

Labels are interleaved with blanks, z of S = 2 L + 1 states. With y_t(k) the softmax of a frame,

    α_t(s) = y_t(z_s) [ α_{t-1}(s) + α_{t-1}(s-1) + 1{z_s ≠ blank, z_s ≠ z_{s-2}} α_{t-1}(s-2) ]
    cost   = −ln( α_T(S) + α_T(S-1) )
    ∂cost/∂a_t(k) = y_t(k) − (1 / (p y_t(k))) Σ_{s: z_s = k} α_t(s) β_t(s)

for logits a, with β the same sum from the end; all of it in log space. The most probable single path in place of the
sum aligns a recording with its transcript.
Paper: Deep Speech 2, sections 3.1 and 4.2 (GPU implementation of CTC), after Graves et al. (2006).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from seqloom.core.errors import DataError
from seqloom.ops.kernels import chosen

_NEVER = -1e30
"""ln 0, whose gradients are zero where those of -inf would not be numbers."""


def ctc_loss(
    logits: Float[Tensor, "B T V"],
    lengths: Int[Tensor, "B"],
    targets: Int[Tensor, "B L"],
    target_lengths: Int[Tensor, "B"],
    blank: int = 0,
) -> Float[Tensor, "B"]:
    """Nats of every utterance, with the implementation chosen for this device and dtype; FP32 or wider.

    Rows that cannot be aligned (`frames_needed` exceeds their length) cost 0 and have no gradient: count them before.

    Args:
        logits: before the softmax. Frames from a row's length on are never looked at and have no gradient.
        lengths: frames of every row, at most T.
        targets: labels, none of them the blank; what stands behind a row's target length is ignored.
    """
    implementation = chosen("ctc", logits.device, logits.dtype, logits, lengths, targets, target_lengths)
    if implementation == "native":
        from seqloom.ops.native.ctc import ctc_loss_native as form
    elif implementation == "triton":
        from seqloom.ops.triton.ctc import ctc_loss_triton as form
    else:
        form = ctc_loss_reference if implementation == "reference" else ctc_loss_torch
    return form(logits, lengths, targets, target_lengths, blank)


def ctc_loss_reference(
    logits: Float[Tensor, "B T V"],
    lengths: Int[Tensor, "B"],
    targets: Int[Tensor, "B L"],
    target_lengths: Int[Tensor, "B"],
    blank: int = 0,
) -> Float[Tensor, "B"]:
    """As the formula reads, one utterance after the other."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    costs = []
    for row, frames, labels, count in zip(logits, lengths.tolist(), targets, target_lengths.tolist(), strict=True):
        costs.append(_cost(row[:frames].log_softmax(-1), labels[:count], blank))
    return torch.stack(costs) if costs else logits.new_zeros(0)


def _cost(y: Float[Tensor, "T V"], targets: Int[Tensor, "L"], blank: int) -> Float[Tensor, ""]:
    needed = int(frames_needed(targets[None], targets.new_tensor([len(targets)])))
    if needed > len(y) or len(y) == 0:
        return y.new_zeros(())
    labels = extended(targets, blank)
    skips = _skips(labels, blank)
    start = torch.arange(len(labels), device=y.device) < 2
    alpha = torch.where(start, y[0, labels], _NEVER)
    for t in range(1, len(y)):
        alpha = y[t, labels] + _arrivals(alpha, skips).logsumexp(0)
    return -alpha[-2:].logsumexp(0)


def ctc_loss_torch(
    logits: Float[Tensor, "B T V"],
    lengths: Int[Tensor, "B"],
    targets: Int[Tensor, "B L"],
    target_lengths: Int[Tensor, "B"],
    blank: int = 0,
) -> Float[Tensor, "B"]:
    """By torch's own loss, whose softmax is kept away from the padding."""
    padding = torch.arange(logits.shape[1], device=logits.device) >= lengths[:, None]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).masked_fill(padding[..., None], 0.0)
    return F.ctc_loss(
        wide.log_softmax(-1).transpose(0, 1), targets.long(), lengths.long(), target_lengths.long(), blank,
        reduction="none", zero_infinity=True,
    )  # fmt: skip


def frames_needed(targets: Int[Tensor, "B L"], target_lengths: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
    """The fewest frames that every target can be aligned with: its labels, and a blank between equal neighbours."""
    inside = torch.arange(targets.shape[1], device=targets.device)[1:] < target_lengths[:, None]
    return target_lengths + ((targets[:, 1:] == targets[:, :-1]) & inside).sum(1)


def alignment(log_probs: Float[Tensor, "T V"], targets: Int[Tensor, "L"], blank: int = 0) -> Int[Tensor, "T"]:
    """The most probable path of a target through an utterance (Viterbi): at every frame, the place among the extended
    labels, blank at even places and `targets[place // 2]` at odd ones.

    Of paths of the same probability the one is taken that moves on later.

    Raises:
        DataError: there are fewer frames than the target needs.
    """
    needed = int(frames_needed(targets[None], targets.new_tensor([len(targets)])))
    if needed > len(log_probs):
        raise DataError(f"a target of {len(targets)} labels needs {needed} frames, but there are {len(log_probs)}")
    labels = extended(targets, blank).cpu()
    y = log_probs.detach().cpu().double()[:, labels]  # sums of thousands of frames
    if not len(y):
        return labels.new_zeros(0, dtype=torch.int64).to(log_probs.device)
    skips = _skips(labels, blank)
    best = torch.where(torch.arange(len(labels)) < 2, y[0], _NEVER)
    moves = torch.zeros(y.shape, dtype=torch.int8)
    for t in range(1, len(y)):
        best, move = _arrivals(best, skips).max(0)
        best += y[t]
        moves[t] = move
    place = len(labels) - 1
    if place and best[place - 1] > best[place]:
        place -= 1
    path = [place]
    for step in moves[1:].flip(0):
        place -= int(step[place])
        path.append(place)
    return torch.tensor(path[::-1], device=log_probs.device)


def extended(targets: Int[Tensor, "*B L"], blank: int) -> Int[Tensor, "*B S"]:
    """The labels with a blank before, between and behind them."""
    labels = targets.new_full((*targets.shape[:-1], 2 * targets.shape[-1] + 1), blank)
    labels[..., 1::2] = targets
    return labels


def _skips(labels: Int[Tensor, "S"], blank: int) -> Bool[Tensor, "S"]:
    """States that can be reached from two before: labels after another label."""
    skips = torch.zeros_like(labels, dtype=torch.bool)
    skips[2:] = (labels[2:] != blank) & (labels[2:] != labels[:-2])
    return skips


def _arrivals(scores: Float[Tensor, "S"], skips: Bool[Tensor, "S"]) -> Float[Tensor, "3 S"]:
    """What can come to every state: itself, the one before, and the one before that where it may be skipped."""
    before = F.pad(scores, (2, 0), value=_NEVER)
    return torch.stack([scores, before[1:-1], before[:-2].masked_fill(~skips, _NEVER)])
