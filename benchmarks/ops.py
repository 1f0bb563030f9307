"""Every op beside plain torch, forward and backward.

    python -m benchmarks ops --only 'ssd-*' --threads 1 --format bf16

Cases are named by op and sizes. `torch_form` is our own portable form, where a faster back end is chosen instead of it.
Gate: outputs and gradients agree with every peer's. The ceiling is the longer of two times: of the matrix products at
the rate of large ones, and of reading every input and output once in each pass it belongs to.
"""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.case import Case, Disagreement, Line, NotHere
from benchmarks.ceiling import DTYPES, arithmetic_rate, read_rate
from benchmarks.op_cases import SHAPES, Contest, Op
from benchmarks.pairing import OURS, Side, in_turns, short
from seqloom.ops.kernels import VARIABLE, table

T = TypeVar("T")

TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}
"""Largest difference of an output or gradient from a peer's, as a share of its largest value."""

FP32_ALWAYS = {"ssd": (1, 2), "norm": (-1,), "experts": (1,), "cross_entropy": (1,)}
"""Inputs that have FP32 whatever the model computes in, by op: step sizes, gains, router weights, masters."""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--format", choices=sorted(DTYPES), default="fp32")


def cases(options: Namespace) -> list[Case]:
    return [Case("-".join([make.__name__, *map(str, sizes)]), partial(measure, make, sizes)) for make, sizes in SHAPES]


def measure(make: Callable[..., Contest], sizes: tuple[int, ...], options: Namespace) -> Line:
    try:
        contest = make(*sizes)
    except ImportError as error:
        raise NotHere(str(error)) from None
    inputs = _placed(contest, options)
    kernel = table(inputs[0].device, inputs[0].dtype).get(contest.op, "torch")
    rivals: dict[str, Op] = {OURS: contest.ours}
    if not options.alone:
        rivals |= contest.peers | ({"torch_form": in_torch(contest.ours)} if kernel != "torch" else {})
    runs = {name: partial(run, rival, inputs, contest.backward) for name, rival in rivals.items()}
    line: Line = {"format": options.format, "kernel": kernel, "gate": agree(runs, options.format)}
    line["outcome"] = float(runs[OURS]()[0].float().abs().mean())
    line |= in_turns({name: Side(_waiting(each, inputs)) for name, each in runs.items()}, options.repeats)
    if contest.backward:
        line["saved_mib"] = {name: short(saved_bytes(rival, inputs) / 2**20) for name, rival in rivals.items()}
    rate, reads = arithmetic_rate(options.format, options.device), read_rate() if options.device == "cpu" else None
    least = max(contest.flops / rate, _traffic(inputs, runs[OURS]()[0], contest.backward) / reads if reads else 0.0)
    medians = {name: seconds[1] for name, seconds in line["seconds"].items()}
    return line | {
        "ceiling_seconds": short(least),
        "share_of_ceiling": {name: short(least / seconds) for name, seconds in medians.items()},
    }


def run(op: Op, inputs: tuple[Tensor, ...], backward: bool = True) -> list[Tensor]:
    """Output and gradients, with the output itself as the weight of its backward pass."""
    if not backward:
        with torch.no_grad():
            return [op(*inputs)]
    y = op(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, y.detach())]


def agree(runs: Mapping[str, Callable[[], list[Tensor]]], format: str) -> dict[str, float]:
    """The gate: each peer's largest difference from ours, as a share of the largest value, over output and gradients.

    Raises:
        Disagreement: it is too large.
    """
    mine = runs[OURS]()
    gaps = {
        name: max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(mine, theirs(), strict=True))
        for name, theirs in runs.items()
        if name != OURS
    }
    if not all(gap < TOLERANCE[format] for gap in gaps.values()):
        raise Disagreement(f"outputs or gradients differ by {gaps} of their largest value; not timed")
    return {name: short(gap) for name, gap in gaps.items()}


def saved_bytes(op: Op, inputs: tuple[Tensor, ...]) -> int:
    """What is kept for the backward pass, inputs not counted."""
    given = {value.untyped_storage().data_ptr() for value in inputs}
    kept: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        op(*inputs)
    return sum(kept.values())


def _placed(contest: Contest, options: Namespace) -> tuple[Tensor, ...]:
    """The inputs on the device and in the format asked for, but for those that are always FP32."""
    always = {place % len(contest.inputs) for place in FP32_ALWAYS.get(contest.op, ())}
    dtypes = [torch.float32 if place in always else DTYPES[options.format] for place in range(len(contest.inputs))]
    return tuple(
        value.to(options.device, dtype).requires_grad_(contest.backward)
        for value, dtype in zip(contest.inputs, dtypes, strict=True)
    )


def in_torch(run: Callable[..., T]) -> Callable[..., T]:
    """The same with every faster back end switched off."""

    def portable(*inputs: Any) -> T:
        with kernels("torch"):
            return run(*inputs)

    return portable


@contextmanager
def kernels(choice: str) -> Iterator[None]:
    """With this override of `ops.kernels`, after those that there are."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = choice if before is None else f"{before},{choice}"
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def _waiting(each: Callable[[], object], inputs: tuple[Tensor, ...]) -> Callable[[object], None]:
    """A run until the device is done."""

    def timed(_: object) -> None:
        each()
        if inputs[0].is_cuda:
            torch.cuda.synchronize()

    return timed


def _traffic(inputs: tuple[Tensor, ...], output: Tensor, backward: bool) -> int:
    """Bytes of inputs and output, forward; then of the inputs, their gradients and that of the output, backward."""
    given = sum(value.nbytes for value in inputs)
    return given + output.nbytes + (2 * given + output.nbytes if backward else 0)
