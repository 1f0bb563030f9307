"""The loss and the recurrences of a recogniser, and torch's own forms of them, as contests (see `op_cases.py`).

A recurrent layer is measured with the product that feeds it, since torch's layers hold one.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.op_cases import Contest, normal


def ctc(B: int, T: int, V: int) -> Contest:
    """Transcripts a quarter as long as their frames, and utterances of two lengths."""
    from seqloom.ops.ctc import ctc_loss

    targets = torch.randint(1, V, (B, T // 4))
    lengths, counts = torch.full((B,), T), torch.full((B,), T // 4)
    lengths[::2], counts[::2] = T - T // 5, T // 5

    def ours(logits: Tensor) -> Tensor:
        return ctc_loss(logits, lengths, targets, counts)

    def theirs(logits: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(log_probs, targets, lengths, counts, reduction="none")

    return Contest("ctc", (normal(B, T, V),), ours, {"ctc_loss": theirs})


def rnn(B: int, T: int, H: int) -> Contest:
    """An input product and a recurrence of ReLUs, as wide as its input."""
    from seqloom.ops.recurrence import rnn

    lengths = torch.full((B,), T)

    def ours(x: Tensor, w: Tensor, u: Tensor) -> Tensor:
        return rnn(F.linear(x, w), u, lengths, limit=math.inf)

    def theirs(x: Tensor, w: Tensor, u: Tensor) -> Tensor:
        return torch._VF.rnn_relu(x, x.new_zeros(1, B, H), (w, u), False, 1, 0.0, True, False, True)[0]

    def loop(x: Tensor, w: Tensor, u: Tensor) -> Tensor:
        h, states = x.new_zeros(B, H), []
        for term in F.linear(x, w).unbind(1):
            h = F.relu(term + F.linear(h, u))
            states.append(h)
        return torch.stack(states, 1)

    return Contest(
        "recurrence",
        (normal(B, T, H), normal(H, H) / H**0.5, 0.5 * normal(H, H) / H**0.5),
        ours,
        {"torch_rnn": theirs, "loop": loop},
        12.0 * B * T * H * H,
    )


def gru(B: int, T: int, H: int) -> Contest:
    """The same, gated."""
    from seqloom.ops.recurrence import gru

    lengths = torch.full((B,), T)

    def ours(x: Tensor, w: Tensor, u: Tensor) -> Tensor:
        return gru(F.linear(x, w), u, lengths)

    def theirs(x: Tensor, w: Tensor, u: Tensor) -> Tensor:
        weights = (in_order_of_torch(w), in_order_of_torch(u))
        return torch._VF.gru(x, x.new_zeros(1, B, H), weights, False, 1, 0.0, True, False, True)[0]

    def loop(x: Tensor, w: Tensor, u: Tensor) -> Tensor:
        h, states = x.new_zeros(B, H), []
        for term in F.linear(x, w).unbind(1):
            (x_z, x_r, x_n), (u_z, u_r, u_n) = term.chunk(3, -1), F.linear(h, u).chunk(3, -1)
            z, r = (x_z + u_z).sigmoid(), (x_r + u_r).sigmoid()
            h = torch.lerp(h, (x_n + r * u_n).tanh(), z)
            states.append(h)
        return torch.stack(states, 1)

    return Contest(
        "recurrence",
        (normal(B, T, H), normal(3 * H, H) / H**0.5, normal(3 * H, H) / H**0.5),
        ours,
        {"torch_gru": theirs, "loop": loop},
        36.0 * B * T * H * H,
    )


def in_order_of_torch(ours: Tensor) -> Tensor:
    """Gates z, r, n as torch has them: r, z, n, with a z that keeps the state where ours renews it."""
    z, r, n = ours.chunk(3)
    return torch.cat([r, -z, n])
