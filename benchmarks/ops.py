"""Forward plus backward of every op beside plain torch, as one JSON line per case.

    python benchmarks/ops.py --only ssd --threads 1 --repeats 9
    python benchmarks/ops.py --out benchmarks/results/ops_laptop_2026-11-26.jsonl

A case is timed only after its outputs and gradients agree with every peer's. Ours and the peers then take turns, so a
busy machine slows all of them alike: `ratio` is the median of the paired time ratios, peer over ours. The ceiling is a
large square matrix product measured in the same run; `gflops` counts multiplications and additions of the matrix
products only.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from machine import place
from seqloom.ops.attention import attention
from seqloom.ops.causal_conv import causal_conv
from seqloom.ops.cross_entropy import linear_cross_entropy
from seqloom.ops.experts import experts
from seqloom.ops.kernels import table
from seqloom.ops.ssd import ssd

Op = Callable[..., Tensor]

TOLERANCE = 1e-3
"""Largest difference of an output or gradient from a peer's, as a share of its largest value, in FP32."""


class Case(NamedTuple):
    op: str
    shape: dict[str, int]
    inputs: tuple[Tensor, ...]
    ours: Op
    peers: dict[str, Op]
    flops: float
    """Of the forward and backward products, recomputation not counted."""


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape)


# --- state-space scan


def ssd_autograd(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int) -> Tensor:
    """All chunks at once, differentiated by autograd."""
    B, T, H, P = x.shape
    G, N = b.shape[2:]
    count, R = T // chunk, H // G
    alpha = (dt * a).view(B, count, chunk, H).cumsum(2).transpose(2, 3)
    last = alpha[..., -1:]
    u = (x * dt[..., None]).view(B, count, chunk, G, R, P).permute(0, 1, 3, 4, 2, 5)
    b, c = (part.view(B, count, chunk, G, N).transpose(2, 3) for part in (b, c))
    decay = (alpha[..., None] - alpha[..., None, :]).clamp(max=0).exp().tril().view(B, count, G, R, chunk, chunk)
    within = (decay * (c @ b.mT)[:, :, :, None]) @ u
    leaving = (last - alpha).exp().view(B, count, G, R, chunk, 1)
    written = b.mT @ (u * leaving).transpose(3, 4).reshape(B, count, G, chunk, R * P)
    across = last.exp().view(B, count, G, 1, R, 1).expand(-1, -1, -1, -1, -1, P).flatten(4)
    states = [torch.zeros_like(written[:, 0])]
    for i in range(count - 1):
        states.append(across[:, i] * states[-1] + written[:, i])
    carried = (c @ torch.stack(states, 1)).view(B, count, G, chunk, R, P).transpose(3, 4)
    y = within + alpha.exp().view(B, count, G, R, chunk, 1) * carried
    return y.permute(0, 1, 4, 2, 3, 5).reshape(B, T, H, P)


def ssd_case(B: int, T: int, H: int, P: int, N: int, G: int, chunk: int) -> Case:
    dt, a = F.softplus(normal(B, T, H) - 2), -0.5 - 8 * torch.rand(H)
    inputs = (normal(B, T, H, P), dt, a, normal(B, T, G, N), normal(B, T, G, N))
    forward = 2 * B * T * (H * P * (chunk + 2 * N) + G * chunk * N)
    return Case(
        "ssd",
        {"B": B, "T": T, "H": H, "P": P, "N": N, "G": G, "chunk": chunk},
        inputs,
        lambda *args: ssd(*args, chunk=chunk)[0],
        {"autograd": lambda x, dt, a, b, c: ssd_autograd(x, dt, a, b, c, chunk)},
        3 * forward,
    )


# --- convolution


def conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    padded = F.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    return F.silu(F.conv1d(padded, weight[:, None], bias, groups=len(weight))).transpose(1, 2)


def shifted(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    taps = weight.shape[1]
    padded = F.pad(x, (0, 0, taps - 1, 0))
    return F.silu(sum((padded[:, k : k + x.shape[1]] * weight[:, k] for k in range(taps)), bias))


def conv_case(B: int, T: int, C: int) -> Case:
    inputs = (normal(B, T, C), normal(C, 4), normal(C))
    peers: dict[str, Op] = {"conv1d": conv1d, "shifted_autograd": shifted}
    return Case("causal_conv", {"B": B, "T": T, "C": C, "K": 4}, inputs, lambda *args: causal_conv(*args)[0], peers, 0)


# --- attention


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
    mask = torch.full((q.shape[2], q.shape[2]), float("-inf"), device=q.device).triu(1)
    return (q @ k.mT * q.shape[3] ** -0.5 + mask).softmax(-1) @ v


def attention_case(B: int, T: int, H: int, G: int, K: int) -> Case:
    inputs = (normal(B, H, T, K), normal(B, G, T, K), normal(B, G, T, K))
    flops = 3 * 4 * B * H * T * T * K / 2
    return Case(
        "attention", {"B": B, "T": T, "H": H, "G": G, "K": K}, inputs, attention, {"softmax": softmax_attention}, flops
    )


# --- experts


def by_expert(indices: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return indices.flatten().argsort(stable=True), indices.flatten().bincount(minlength=count)


def experts_case(S: int, K: int, E: int, latent: int, hidden: int) -> Case:
    scores = torch.randn(S, E) + 0.5 * torch.randn(E)
    weights, indices = scores.sigmoid().topk(K)
    inputs = (
        normal(S, latent),
        weights,
        normal(E, hidden, latent) / latent**0.5,
        normal(E, latent, hidden) / hidden**0.5,
    )

    def loop(x: Tensor, weights: Tensor, up: Tensor, down: Tensor) -> Tensor:
        order, counts = by_expert(indices.to(x.device), E)
        ups, downs = up.unbind(), down.unbind()
        outputs = [
            F.relu(part @ ups[e].mT).square() @ downs[e].mT
            for e, part in enumerate(x[order // K].split(counts.tolist()))
        ]
        return torch.zeros_like(x).index_add(0, order // K, torch.cat(outputs) * weights.flatten()[order, None])

    def padded_bmm(x: Tensor, weights: Tensor, up: Tensor, down: Tensor) -> Tensor:
        order, counts = by_expert(indices.to(x.device), E)
        expert = indices.to(x.device).flatten()[order]
        slot = torch.arange(S * K, device=x.device) - (counts.cumsum(0) - counts)[expert]
        rows = x.new_zeros(E, int(counts.max()), latent).index_put((expert, slot), x[order // K])
        outputs = (F.relu(rows @ up.mT).square() @ down.mT)[expert, slot]
        return torch.zeros_like(x).index_add(0, order // K, outputs * weights.flatten()[order, None])

    def grouped_mm(x: Tensor, weights: Tensor, up: Tensor, down: Tensor) -> Tensor:
        order, counts = by_expert(indices.to(x.device), E)
        ends = counts.cumsum(0, dtype=torch.int32)
        active = F.relu(F.grouped_mm(x[order // K], up.mT, offs=ends)).square()
        outputs = F.grouped_mm(active, down.mT, offs=ends)
        return torch.zeros_like(x).index_add(0, order // K, outputs * weights.flatten()[order, None])

    return Case(
        "experts",
        {"S": S, "K": K, "E": E, "I": latent, "F": hidden},
        inputs,
        lambda x, weights, up, down: experts(x, indices.to(x.device), weights, up, down),
        {"loop": loop, "padded_bmm": padded_bmm, "grouped_mm": grouped_mm},
        12.0 * S * K * latent * hidden,
    )


# --- cross-entropy


def cross_entropy_case(S: int, D: int, V: int) -> Case:
    targets = torch.randint(V, (S,))
    return Case(
        "cross_entropy",
        {"S": S, "D": D, "V": V},
        (normal(S, D), 0.02 * normal(V, D)),
        lambda hidden, weight: linear_cross_entropy(hidden, weight, targets.to(hidden.device)),
        {
            "full_logits": lambda hidden, weight: F.cross_entropy(
                hidden @ weight.mT, targets.to(hidden.device), reduction="sum"
            )
        },
        6.0 * S * D * V,
    )


CASES: list[tuple[str, Callable[..., Case], tuple[int, ...]]] = [
    ("ssd", ssd_case, (8, 256, 10, 32, 32, 2, 64)),
    ("ssd", ssd_case, (8, 512, 16, 32, 64, 2, 64)),
    ("ssd", ssd_case, (1, 4096, 32, 64, 128, 8, 128)),
    ("causal_conv", conv_case, (8, 256, 448)),
    ("causal_conv", conv_case, (1, 4096, 4096)),
    ("attention", attention_case, (8, 256, 4, 2, 32)),
    ("attention", attention_case, (1, 2048, 16, 4, 64)),
    ("experts", experts_case, (2048, 4, 32, 64, 160)),
    ("experts", experts_case, (4096, 6, 128, 256, 512)),
    ("cross_entropy", cross_entropy_case, (2048, 160, 4096)),
    ("cross_entropy", cross_entropy_case, (1024, 512, 32768)),
]


# --- measuring


def run(function: Op, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Output and gradients, with the output itself as the weight of its backward pass."""
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, y.detach())]


def seconds(function: Op, inputs: tuple[Tensor, ...]) -> float:
    start = time.perf_counter()
    run(function, inputs)
    if inputs[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def disagreement(mine: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference as a share of the largest value, over output and gradients."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(mine, theirs, strict=True))


def saved_mebibytes(function: Op, inputs: tuple[Tensor, ...]) -> float:
    """Memory that is kept for the backward pass, inputs not counted."""
    given = {value.untyped_storage().data_ptr() for value in inputs}
    kept: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        function(*inputs)
    return sum(kept.values()) / 2**20


def measure(case: Case, repeats: int) -> dict[str, Any]:
    expected = run(case.ours, case.inputs)
    gate = {name: disagreement(expected, run(peer, case.inputs)) for name, peer in case.peers.items()}
    del expected
    line: dict[str, Any] = {"op": case.op, "shape": case.shape, "disagreement": gate}
    if not all(value < TOLERANCE for value in gate.values()):
        return {**line, "error": f"outputs or gradients differ by more than {TOLERANCE}; not timed"}
    functions = {"ours": case.ours, **case.peers}
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            taken = seconds(function, case.inputs)
            if repeat:  # the first round warms up
                times[name].append(taken)
    quartiles = {name: [1e3 * q for q in statistics.quantiles(taken, n=4)] for name, taken in times.items()}
    ratios = {
        name: statistics.median(p / o for p, o in zip(times[name], times["ours"], strict=True)) for name in case.peers
    }
    return {
        **line,
        "ms_quartiles": {name: [round(q, 2) for q in values] for name, values in quartiles.items()},
        "ratio": {name: round(value, 2) for name, value in ratios.items()},
        "saved_mib": {name: round(saved_mebibytes(function, case.inputs), 1) for name, function in functions.items()},
        "gflops": round(case.flops / quartiles["ours"][1] / 1e6, 1),
    }


def ceiling(device: torch.device, repeats: int) -> float:
    """GFLOP/s of a square FP32 product of width 1024."""
    a = torch.randn(1024, 1024, device=device)
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        float((a @ a)[0, 0])
        taken.append(time.perf_counter() - start)
    return 2 * 1024**3 / statistics.median(taken[1:]) / 1e9


def results(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    device = torch.device(args.device)
    for op, make, sizes in CASES:
        if args.only not in (None, op):
            continue
        torch.manual_seed(0)
        case = make(*sizes)
        case = case._replace(inputs=tuple(value.to(device).requires_grad_() for value in case.inputs))
        kernel = table(device, torch.float32).get(op, "torch")
        line = {**measure(case, args.repeats), "ceiling_gflops": round(ceiling(device, args.repeats), 1)}
        yield {**line, "kernel": kernel, **place(device)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted({op for op, _, _ in CASES}))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, help="also write the lines to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = []
    for line in results(args):
        lines.append(json.dumps(line))
        print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(any('"error"' in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
