"""The Triton kernels on a CUDA device: gates first, then times, then training and decode steps; one command.

    python -m benchmarks gpu --out benchmarks/results/gpu_h100_2026-11-28.jsonl
    python -m benchmarks gpu --only 'trial-*'

gate-OP-FORMAT   the op beside its reference in FP64, and run twice: see gpu_gates.py
OP-SIZES         forward and backward in BF16 beside our torch form, plain torch forms, and torch.compile of the first
serve-...        the engine's decode steps, recorded beside single calls and transformers: see gpu_serve.py
step-MODEL       a training step (forward, backward, AdamW) with the kernels and without; FLOP/s and peak memory
trial-KERNEL     a kernel under other launch options, within its op; only where named, to settle those in `ops/triton`
precision-...    units for FP8 beside emulation and BF16, and a comparison of recipes; only where named, see
                 gpu_precision.py

A timed op passes a gate of its own first, at its own sizes. The ceiling is the longer of two times: of its products at
the rate of a large one, and of reading every input and writing every output once in each pass, at the rate of a copy;
both are measured in the same run. FLOP/s of a step count what `models.training_flops` counts.
"""

import gc
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks import gpu_gates, gpu_precision, gpu_serve, op_cases
from benchmarks.case import Case, Line, NotHere
from benchmarks.ceiling import least_seconds
from benchmarks.gpu_limits import DEVICE, copy_rate, product_rate
from benchmarks.models import build, parameters, training_flops
from benchmarks.ops import FP32_ALWAYS, agree, in_torch, run
from benchmarks.pairing import OURS, Side, in_turns, plain, short
from benchmarks.peers import agree_on_losses
from benchmarks.train import targets_of
from seqloom.ops.kernels import table
from seqloom.systems.hybrid_lm.config import AttentionConfig, HybridConfig, MambaConfig, MlpConfig, MoeConfig

NO_DEVICE = 3
"""Exit status where there is no CUDA device."""

TURN_SECONDS = 0.02

SHAPES: list[tuple[Callable[..., op_cases.Contest], tuple[int, ...]]] = [
    (op_cases.ssd, (4, 4096, 64, 64, 128, 8, 128)),
    (op_cases.ssd, (1, 8192, 64, 64, 128, 8, 128)),
    (op_cases.ssd_token, (64, 64, 64, 128, 8)),
    (op_cases.causal_conv, (4, 4096, 6144)),
    (op_cases.rms_norm, (4, 4096, 2048)),
    (op_cases.gated_norm, (4, 4096, 4096, 8)),
    (op_cases.experts, (16384, 4, 32, 1024, 2048)),
    (op_cases.experts, (8192, 6, 128, 1024, 768)),
    (op_cases.cross_entropy, (8192, 2048, 131072)),
]
"""The layers of models of one to eight billion parameters, at a micro-batch."""

MAMBA = MambaConfig(heads=48, head_width=64, state_width=128, groups=8, chunk=128)
MODELS = {
    "dense": HybridConfig(
        pattern="M-M-M-M*-M-M-M-M*-M-M-M-M*-",
        vocab_size=65536,
        width=1536,
        mamba=MAMBA,
        attention=AttentionConfig(heads=24, kv_heads=8, head_width=64),
        mlp=MlpConfig(hidden_width=6144),
    ),
    "moe": HybridConfig(
        pattern="MEMEM*EMEMEM*E",
        vocab_size=65536,
        width=1024,
        mamba=MambaConfig(heads=32, head_width=64, state_width=128, groups=8, chunk=128),
        attention=AttentionConfig(heads=16, kv_heads=4, head_width=64),
        moe=MoeConfig(experts=32, top_k=4, expert_width=1024, shared_width=2048),
    ),
}
"""Of 0.4 to 1 billion parameters."""

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""BF16 FLOP/s that the maker states, without sparsity."""

TRIALS: dict[str, tuple[int, list[dict[str, int]]]] = {
    "outputs": (0, [{"num_warps": 4, "num_stages": 1}, {"num_warps": 8, "num_stages": 1}]),
    "states": (0, [{"num_warps": 4, "num_stages": 2}, {"num_warps": 8, "num_stages": 3}]),
    "dstates": (0, [{"num_warps": 4, "num_stages": 3}, {"num_warps": 8, "num_stages": 2}]),
    "gradients": (0, [{"num_warps": w, "num_stages": s} for w in (4, 8) for s in (1, 2)]),
    "_before_activation": (3, [{"num_warps": 2}, {"num_warps": 8}]),
    "_multiply": (6, [{"num_warps": w, "num_stages": s} for w in (4, 8) for s in (3, 4)]),
    "_accumulate": (6, [{"num_warps": w, "num_stages": s} for w in (4, 8) for s in (2, 3, 4)]),
    "_rows": (8, [{"num_warps": 4}, {"num_warps": 16}]),
}
"""Kernel -> which of `SHAPES` runs it, and the options to try."""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=4, help="of a training batch (default: 4)")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a row in training (default: 4096)")
    parser.set_defaults(device=DEVICE)


def cases(options: Namespace) -> list[Case]:
    if not torch.cuda.is_available():
        print("benchmarks gpu: torch finds no CUDA device here, so nothing was measured", file=sys.stderr)
        raise SystemExit(NO_DEVICE)
    return [
        Case("limits", limits),
        *(
            Case(f"gate-{op}-{format}", partial(gate, op, format))
            for op in gpu_gates.GATED
            for format in gpu_gates.LARGEST
        ),
        *(Case("-".join([make.__name__, *map(str, sizes)]), partial(time, make, sizes)) for make, sizes in SHAPES),
        *(Case(f"step-{model}", partial(step, model)) for model in MODELS),
        *gpu_serve.cases(MODELS),
        *(Case(f"trial-{kernel.strip('_')}", partial(trial, kernel), when_named=True) for kernel in TRIALS),
        *gpu_precision.cases(),
    ]


def limits(options: Namespace) -> Line:
    return {"figures": {"copy_gb_per_s": short(copy_rate() / 1e9), "bf16_tflops": short(product_rate() / 1e12)}}


def gate(name: str, format: str, options: Namespace) -> Line:
    with torch.device(DEVICE):
        gated = gpu_gates.GATED[name]()
    require_triton(gated.op)
    return {"kernel": "triton"} | gpu_gates.gate(gated, format)


def require_triton(op: str) -> None:
    if (kernel := table(torch.device(DEVICE), torch.bfloat16)[op]) != "triton":
        raise NotHere(f"{kernel} is chosen for {op} here, not triton")


# --- times of ops


def time(make: Callable[..., op_cases.Contest], sizes: tuple[int, ...], options: Namespace) -> Line:
    contest, inputs = placed(make, sizes)
    require_triton(contest.op)
    rivals = {OURS: contest.ours, "torch_form": in_torch(contest.ours)} | contest.peers
    if sizes == next(other for maker, other in SHAPES if maker is make):  # compiling takes long; once an op will do
        first = next(iter(contest.peers))
        rivals[f"compiled_{first}"] = torch.compile(contest.peers[first], dynamic=False)
    runs, skipped = {}, {}
    for name, rival in rivals.items():
        runs[name] = partial(run, rival, inputs, contest.backward)
        try:
            runs[name]()
        except Exception as error:
            if name == OURS:
                raise
            skipped[name] = " ".join(str(error).split())[:200] or type(error).__name__
            del runs[name]
        gc.collect()
        torch.cuda.empty_cache()
    line: Line = {"format": "bf16", "kernel": "triton", "gate": agree(runs, "bf16"), "skipped": skipped}
    launches = launches_of(runs[OURS])
    line |= in_turns({name: Side(done(each, launches)) for name, each in runs.items()}, options.repeats, launches)
    least = max(contest.flops / product_rate(), least_bytes(inputs, runs[OURS]()[0], contest.backward) / copy_rate())
    medians = {name: seconds[1] for name, seconds in line["seconds"].items()}
    return line | {
        "ceiling_seconds": short(least),
        "share_of_ceiling": {name: short(least / seconds) for name, seconds in medians.items()},
    }


def placed(
    make: Callable[..., op_cases.Contest], sizes: tuple[int, ...]
) -> tuple[op_cases.Contest, tuple[Tensor, ...]]:
    """A contest and its inputs, made on the device, in BF16 but for those that are always FP32."""
    with torch.device(DEVICE):
        contest = make(*sizes)
    always = {place % len(contest.inputs) for place in FP32_ALWAYS.get(contest.op, ())}
    inputs = (
        value.to(torch.float32 if place in always else torch.bfloat16).requires_grad_(contest.backward)
        for place, value in enumerate(contest.inputs)
    )
    return contest, tuple(inputs)


def launches_of(run: Callable[[], object]) -> int:
    """How many runs a turn has: enough that the device works on one while Python prepares the next, as in training."""
    return max(1, min(20, int(TURN_SECONDS / least_seconds(run, DEVICE, tries=2))))


def done(run: Callable[[], object], launches: int) -> Callable[[object], None]:
    """Several runs, until the device is done."""

    def timed(_: object) -> None:
        for _ in range(launches):
            run()
        torch.cuda.synchronize()

    return timed


def least_bytes(inputs: tuple[Tensor, ...], output: Tensor, backward: bool) -> int:
    """Of inputs and output, forward; then of the inputs, their gradients and that of the output, backward."""
    given = sum(value.nbytes for value in inputs)
    return given + output.nbytes + (2 * given + output.nbytes if backward else 0)


def trial(kernel: str, options: Namespace) -> Line:
    from seqloom.ops.triton.tiles import ON_TRIAL

    place, tries = TRIALS[kernel]
    make, sizes = SHAPES[place]
    contest, inputs = placed(make, sizes)
    require_triton(contest.op)
    ours = partial(run, contest.ours, inputs)
    launches = launches_of(ours)
    sides = {OURS: done(ours, launches)}
    skipped = {}
    for chosen in tries:

        def tried(given: object, chosen: dict[str, int] = chosen) -> None:
            ON_TRIAL[kernel] = chosen
            try:
                sides[OURS](given)
            finally:
                ON_TRIAL.clear()

        name = "_".join(f"{key.removeprefix('num_')}_{value}" for key, value in chosen.items())
        try:
            tried(None)
        except Exception as error:
            skipped[name] = " ".join(str(error).split())[:200]
        else:
            sides[name] = tried
    timed = in_turns({name: Side(side) for name, side in sides.items()}, options.repeats, launches)
    return {"op": contest.op, "sizes": list(sizes), "skipped": skipped} | timed


# --- training steps


def step(model: str, options: Namespace) -> Line:
    config = MODELS[model]
    tokens = torch.randint(config.vocab_size, (options.rows, options.length), device=DEVICE)
    line: Line = {"parameters": parameters(config), "rows": options.rows, "length": options.length}
    steps: dict[str, Callable[[], float]] = {}
    losses, peaks, skipped = {}, {}, {}
    for name in (OURS, "torch_form"):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        try:
            taken = training_step(config, tokens)
            taken = taken if name == OURS else in_torch(taken)
            losses[name] = [taken(), taken()]
        except torch.OutOfMemoryError as error:
            if name == OURS:
                raise
            skipped[name] = str(error).split(". ")[0]
            continue
        steps[name] = taken
        peaks[name] = torch.cuda.max_memory_allocated() - before
    line |= {"gate": agree_on_losses(losses, "bf16"), "bytes": peaks, "skipped": skipped}
    line |= in_turns({name: plain(each) for name, each in steps.items()}, options.repeats)
    flops = training_flops(config, options.rows, options.length)
    medians = {name: seconds[1] for name, seconds in line["seconds"].items()}
    rate = flops / medians[OURS]
    stated = next((peak for name, peak in PEAK.items() if name in torch.cuda.get_device_name()), None)
    figures = {"tflops": short(rate / 1e12)} | ({"mfu_percent": short(100 * rate / stated)} if stated else {})
    return line | {
        "tokens_per_second": {name: short(tokens.numel() / seconds) for name, seconds in medians.items()},
        "figures": figures,
        "share_of_ceiling": {name: short(flops / seconds / product_rate()) for name, seconds in medians.items()},
    }


def training_step(config: HybridConfig, tokens: Tensor) -> Callable[[], float]:
    """A step as the training loop takes it, FP32 masters and BF16 activations; gives the loss before it."""
    from seqloom.data.rows import NO_TARGET
    from seqloom.systems.hybrid_lm.loss import main_loss
    from seqloom.train.config import OptimizerConfig
    from seqloom.train.optimizers import build_optimizers

    with torch.device(DEVICE):
        model = build(config, "bf16").train()
    optimizers = build_optimizers(model, OptimizerConfig(lr=1e-4, weight_decay=0.1))
    targets = targets_of(tokens)

    def taken() -> float:
        hidden, _ = model.hidden(tokens)
        loss = main_loss(model, hidden, targets)[0] / (targets != NO_TARGET).sum()
        loss.backward()
        optimizers.step(1.0)
        model.zero_grad()
        return float(loss.detach())

    return taken
