"""The gates of the Triton kernels: every op beside its reference in FP64, and beside itself.

Sizes are odd, rows are packed and padded, states are given, and some experts idle.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Disagreement, Line
from benchmarks.ceiling import DTYPES
from benchmarks.pairing import short

LARGEST = {"fp32": 1e-5, "bf16": 2e-2}
"""Norm of a difference as a share of the norm of the truth."""


class Gated(NamedTuple):
    """An op and its reference as functions of the same inputs; those at `narrow` have the format of the activations."""

    op: str
    kernel: Callable[..., Any]
    reference: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    narrow: tuple[int, ...]


def documents(rows: int, length: int) -> Tensor:
    """Of all lengths from one token up, and padding at the end of the last row."""
    ends = torch.arange(1, 64).cumsum(0)
    numbers = torch.bucketize(torch.arange(length), ends, right=True).expand(rows, -1).clone()
    numbers[-1, length - length // 5 :] = -1
    return numbers


def gated_ssd() -> Gated:
    from seqloom.ops.ssd import ssd, ssd_reference

    B, T, H, P, G, N = 2, 333, 4, 64, 2, 128
    packed = documents(B, T)
    seen = (packed >= 0)[..., None, None]

    def kernel(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor, skip: Tensor) -> Any:
        y, after = ssd(x, dt, a, b, c, state, packed, chunk=128, skip=skip)
        return torch.where(seen, y, 0.0), after

    def reference(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor, skip: Tensor) -> Any:
        y, after = ssd_reference(x, dt, a, b, c, state, packed)
        return torch.where(seen, y + skip[:, None] * x, 0.0), after

    dt, a = F.softplus(torch.randn(B, T, H) - 2), -0.5 - 8 * torch.rand(H)
    shared = torch.randn(B, T, G, N), torch.randn(B, T, G, N)
    inputs = (torch.randn(B, T, H, P), dt, a, *shared, torch.randn(B, H, P, N), torch.randn(H))
    return Gated("ssd", kernel, reference, inputs, (0, 3, 4))


def gated_ssd_odd() -> Gated:
    """Widths that fill no tile."""
    from seqloom.ops.ssd import ssd, ssd_reference

    B, T, H, P, G, N = 3, 70, 6, 17, 1, 5
    dt, a = F.softplus(torch.randn(B, T, H) - 2), -0.5 - 8 * torch.rand(H)
    inputs = (torch.randn(B, T, H, P), dt, a, torch.randn(B, T, G, N), torch.randn(B, T, G, N))
    return Gated("ssd", lambda *values: ssd(*values, chunk=32), ssd_reference, inputs, (0, 3, 4))


def gated_causal_conv() -> Gated:
    from seqloom.ops.causal_conv import causal_conv, causal_conv_reference

    B, T, C, K = 2, 333, 130, 4
    packed = documents(B, T)
    numbers = torch.cat([packed[:, :1].expand(-1, K - 1), packed], 1)
    inputs = (torch.randn(B, T, C), torch.randn(C, K), torch.randn(C), torch.randn(B, K - 1, C))
    return Gated(
        "causal_conv",
        lambda *values: causal_conv(*values, packed)[0],
        lambda *values: causal_conv_reference(*values, numbers),
        inputs,
        (0, 3),
    )


def gated_norm() -> Gated:
    from seqloom.ops.norm import gated_group_norm, gated_group_norm_reference, rms_norm, rms_norm_reference

    def kernel(y: Tensor, z: Tensor, weight: Tensor) -> Any:
        return gated_group_norm(y, z, weight, 3, 1e-5), rms_norm(y, weight, 1e-5)

    def reference(y: Tensor, z: Tensor, weight: Tensor) -> Any:
        return gated_group_norm_reference(y, z, weight, 3, 1e-5), rms_norm_reference(y, weight, 1e-5)

    return Gated(
        "norm", kernel, reference, (torch.randn(3, 41, 333), torch.randn(3, 41, 333), torch.randn(333)), (0, 1)
    )


def gated_experts() -> Gated:
    from seqloom.ops.experts import experts, experts_reference

    S, K, E, I, F_ = 301, 3, 12, 130, 70  # noqa: E741
    weights, indices = torch.rand(S, E - 2).topk(K, -1)  # two experts idle
    return Gated(
        "experts",
        lambda x, weights, up, down: experts(x, indices, weights, up, down),
        lambda x, weights, up, down: experts_reference(x, indices, weights, up, down),
        (torch.randn(S, I), weights, torch.randn(E, F_, I) / I**0.5, torch.randn(E, I, F_) / F_**0.5),
        (0, 2, 3),
    )


def gated_cross_entropy() -> Gated:
    from seqloom.ops.cross_entropy import linear_cross_entropy_reference, linear_cross_entropy_z

    S, D, V = 301, 96, 9001
    targets = torch.randint(V, (S,))
    targets[::5] = -100
    return Gated(
        "cross_entropy",
        lambda hidden, weight: linear_cross_entropy_z(hidden, weight, targets, 1e-3)[0],
        lambda hidden, weight: linear_cross_entropy_reference(hidden, weight, targets, 1e-3)[0],
        (torch.randn(S, D), torch.randn(V, D) / D**0.5),
        (0, 1),
    )


def gated_paged_attention() -> Gated:
    """Three tokens of rows that end around borders of pages; what no row has is not a number."""
    from seqloom.ops.paged_attention import Pages, paged_attention, paged_attention_reference

    B, H, G, T, K, S, N = 5, 6, 2, 3, 80, 32, 40
    lengths, tables = torch.tensor([0, 29, 30, 150, 61]), torch.randperm(N)[:35].view(B, 7).int()
    unused = torch.ones(N, S, dtype=torch.bool)
    for row, length in enumerate(lengths.tolist()):
        for place in range(length + T):
            unused[tables[row, place // S], place % S] = False
    keys = torch.randn(N, G, K, S).masked_fill(unused[:, None, None], torch.nan)
    values = torch.randn(N, G, S, K).masked_fill(unused[:, None, :, None], torch.nan)

    @torch.no_grad()
    def kernel(q: Tensor, keys: Tensor, values: Tensor) -> Any:
        return paged_attention(q, Pages(keys, values), tables, lengths)

    @torch.no_grad()
    def reference(q: Tensor, keys: Tensor, values: Tensor) -> Any:
        return paged_attention_reference(q, Pages(keys, values), tables, lengths)

    return Gated("paged_attention", kernel, reference, (torch.randn(B, H, T, K), keys, values), (0, 1, 2))


def gated_ctc() -> Gated:
    """Utterances of several lengths, labels that repeat, none at all; many symbols."""
    from seqloom.ops.ctc import ctc_loss, ctc_loss_torch

    B, T, V, L = 4, 60, 2100, 21
    targets = torch.randint(1, 9, (B, L))
    lengths, labels = torch.tensor([T, T - 7, T, T - 20]), torch.tensor([L, L - 2, 0, 5])
    return Gated(
        "ctc",
        lambda logits: ctc_loss(logits, lengths, targets, labels),
        lambda logits: ctc_loss_torch(logits, lengths, targets, labels),
        (2 * torch.randn(B, T, V),),
        (0,),
    )


GATED: dict[str, Callable[[], Gated]] = {
    "ssd": gated_ssd,
    "ssd_odd": gated_ssd_odd,
    "causal_conv": gated_causal_conv,
    "norm": gated_norm,
    "experts": gated_experts,
    "cross_entropy": gated_cross_entropy,
    "paged_attention": gated_paged_attention,
    "ctc": gated_ctc,
}


def gate(gated: Gated, format: str) -> Line:
    """The largest gap of an output or a gradient, or Disagreement."""
    with torch.device(gated.inputs[0].device):
        narrow = [
            value.to(DTYPES[format]) if place in gated.narrow else value for place, value in enumerate(gated.inputs)
        ]
        found = results(gated.kernel, narrow)
        again = results(gated.kernel, narrow)
        truth = results(gated.reference, [value.double() for value in narrow])
    gaps = [short(float((one.double() - other).norm() / other.norm())) for one, other in zip(found, truth, strict=True)]
    line: Line = {"format": format, "kernel": "triton", "gate": {"reference": max(gaps)}, "gaps": gaps}
    if not all(gap < LARGEST[format] for gap in gaps):
        raise Disagreement(
            f"outputs and gradients are off by {gaps} of their norms; at most {LARGEST[format]} is allowed"
        )
    if not all(torch.equal(one, other) for one, other in zip(found, again, strict=True)):
        raise Disagreement("the same inputs gave other bits in a second run")
    return line


def results(function: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor]:
    """Outputs, and gradients under random weights where there are any."""
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    outputs = function(*leaves)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if not outputs[0].requires_grad:
        return outputs
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator, device="cpu").to(y) for y in outputs]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, weights)]
