"""Peak memory of training steps beside transformers' model with the same weights, each side in a process of its own.

`bytes` is what the process grew by: its resident peak over the steps, less what was resident with everything imported
and used once but no model yet. `tensor_bytes` is the same with a memory map for each larger tensor, so that it counts
what tensors take and not what the C library's allocator keeps. Cases, formats and steps are those of `train`.
Gate: both sides give the same losses.
"""

import tempfile
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import train
from benchmarks.case import Case, Line, NotHere
from benchmarks.child import call
from benchmarks.models import SIZES, TOY, parameters, write
from benchmarks.pairing import OURS, short
from benchmarks.peers import TRANSFORMERS, agree_on_losses, require, versions

STATUS, REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MAP_EACH = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def add_options(parser: ArgumentParser) -> None:
    train.add_options(parser)


def cases(options: Namespace) -> list[Case]:
    return [case._replace(measure=partial(measure, case.name)) for case in train.cases(options)]


def measure(case: str, options: Namespace) -> Line:
    size, format = case.split("-")
    if not REFS.exists():
        raise NotHere("peaks are read from /proc, which only Linux has")
    line: Line = {
        "parameters": parameters(SIZES[size]),
        "rows": options.rows,
        "length": options.length,
        "how": train.HOW[format],
    }
    sides = [OURS]
    if not options.alone:
        try:
            require(TRANSFORMERS)
            sides.append(TRANSFORMERS)
            line["versions"] = versions(TRANSFORMERS)
        except NotHere as reason:
            line["skipped"] = {TRANSFORMERS: str(reason)}
    with tempfile.TemporaryDirectory() as room:
        toy, folder = (write(SIZES[name], "fp32", Path(room, name)) for name in (TOY, size))
        given = (size, format, options.rows, options.length, options.threads, str(toy), str(folder))
        whole = {side: call("benchmarks.memory", "peak", side, *given) for side in sides}
        tensors = {side: call("benchmarks.memory", "peak", side, *given, env=MAP_EACH) for side in sides}
    line["gate"] = agree_on_losses({side: found["losses"] for side, found in whole.items()}, format)
    line["outcome"] = whole[OURS]["losses"][-1]
    line["bytes"] = {side: found["bytes"] for side, found in whole.items()}
    line["tensor_bytes"] = {side: found["bytes"] for side, found in tensors.items()}
    if TRANSFORMERS in whole:
        for name in ("bytes", "tensor_bytes"):
            line[f"{name}_ratio"] = {TRANSFORMERS: short(line[name][TRANSFORMERS] / line[name][OURS])}
    return line


def peak(side: str, size: str, format: str, rows: int, length: int, threads: int, toy: str, folder: str) -> Any:
    """Losses, and by how much this process grew at most while it trained."""
    torch.set_num_threads(threads)
    open_step = {OURS: train.our_step, TRANSFORMERS: train.their_step}[side]
    warm = open_step(Path(toy), format, train.batch(TOY, 1, 64))
    warm()
    del warm
    before = _kilobytes("VmRSS")
    step = open_step(Path(folder), format, train.batch(size, rows, length))
    REFS.write_text("5")  # reading the folder does not count
    losses = [step() for _ in range(train.GATE_STEPS)]
    return {"losses": losses, "bytes": 1024 * (_kilobytes("VmHWM") - before)}


def _kilobytes(name: str) -> int:
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
