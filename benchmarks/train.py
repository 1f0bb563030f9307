"""Training steps (forward, backward, AdamW) beside transformers' model with the same weights, batch and optimizer.

    python -m benchmarks train --only '150m-*' --threads 2

Cases are SIZE-FORMAT. In bf16 each side works as its users do: ours with the precision recipe bf16 (FP32 master
weights, BF16 activations and products), transformers with FP32 weights under torch.autocast, as its Trainer does.
Neither clips gradients.
Gate: both give the same loss before the first step and after it, so that forward, backward and update agree.
"""

import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Case, Line, NotHere
from benchmarks.ceiling import arithmetic_rate
from benchmarks.models import SIZES, TOY, parameters, training_flops, write
from benchmarks.pairing import OURS, in_turns, plain, short
from benchmarks.peers import TRANSFORMERS, agree_on_losses, open_transformers, versions

LR, BETAS, EPS, DECAY = 1e-4, (0.9, 0.95), 1e-8, 0.1
GATE_STEPS = 2
HOW = {
    "fp32": {OURS: "FP32", TRANSFORMERS: "FP32"},
    "bf16": {OURS: "FP32 masters, recipe bf16", TRANSFORMERS: "FP32 masters, torch.autocast to BF16"},
}

Step = Callable[[], float]
"""One training step; gives the loss before it."""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=4, help="of a batch (default: 4)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row (default: 512)")


def cases(options: Namespace) -> list[Case]:
    return [
        Case(f"{size}-{format}", partial(measure, size, format), when_named=size == TOY)
        for size in SIZES
        for format in HOW
    ]


def measure(size: str, format: str, options: Namespace) -> Line:
    config = SIZES[size]
    tokens = batch(size, options.rows, options.length)
    line: Line = {"parameters": parameters(config), "rows": options.rows, "length": options.length, "how": HOW[format]}
    with tempfile.TemporaryDirectory() as room:
        folder = write(config, "fp32", Path(room))
        steps: dict[str, Step] = {OURS: our_step(folder, format, tokens)}
        if not options.alone:
            try:
                steps[TRANSFORMERS] = their_step(folder, format, tokens)
                line["versions"] = versions(TRANSFORMERS)
            except NotHere as reason:
                line["skipped"] = {TRANSFORMERS: str(reason)}
    losses = {name: [step() for _ in range(GATE_STEPS)] for name, step in steps.items()}
    line["gate"] = agree_on_losses(losses, format)
    line["outcome"] = losses[OURS][-1]
    line |= in_turns({name: plain(step) for name, step in steps.items()}, options.repeats, warm=True)
    flops, ceiling = training_flops(config, options.rows, options.length), arithmetic_rate(format)
    medians = {name: seconds[1] for name, seconds in line["seconds"].items()}
    return line | {
        "tokens_per_second": {name: short(tokens.numel() / seconds) for name, seconds in medians.items()},
        "gflops": {name: short(flops / seconds / 1e9) for name, seconds in medians.items()},
        "ceiling_gflops": short(ceiling / 1e9),
        "share_of_ceiling": {name: short(flops / seconds / ceiling) for name, seconds in medians.items()},
    }


def batch(size: str, rows: int, length: int) -> Tensor:
    return torch.randint(SIZES[size].vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


def targets_of(tokens: Tensor) -> Tensor:
    """The next token of each, none after the last."""
    from seqloom.data.rows import NO_TARGET

    return torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], NO_TARGET)], dim=1)


def our_step(folder: Path, format: str, tokens: Tensor) -> Step:
    """A step as the training loop takes it."""
    from seqloom import load
    from seqloom.data.rows import NO_TARGET
    from seqloom.numerics.precision import PrecisionConfig, apply_precision
    from seqloom.systems.hybrid_lm.loss import main_loss
    from seqloom.train.config import OptimizerConfig
    from seqloom.train.optimizers import build_optimizers

    model = load(folder).train()
    apply_precision(model, PrecisionConfig(activations=format))  # type: ignore[arg-type]
    settings = OptimizerConfig(lr=LR, beta1=BETAS[0], beta2=BETAS[1], eps=EPS, weight_decay=DECAY)
    optimizers = build_optimizers(model, settings)
    targets = targets_of(tokens)

    def step() -> float:
        hidden, _ = model.hidden(tokens)
        loss = main_loss(model, hidden, targets)[0] / (targets != NO_TARGET).sum()
        loss.backward()
        optimizers.step(1.0)
        model.zero_grad()
        return float(loss.detach())

    return step


def their_step(folder: Path, format: str, tokens: Tensor) -> Step:
    """A step as transformers' Trainer takes it, without what the Trainer does around it."""
    model = open_transformers(folder, "fp32").train()
    everything: list[Any] = list(model.parameters())
    groups = [
        {"params": [p for p in everything if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in everything if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, fused=True)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=format == "bf16"):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step
