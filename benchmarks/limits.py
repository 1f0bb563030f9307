"""What this machine can do at most: memory, products, fused multiply-adds of a core, and what calls cost.

Everything that other areas call a ceiling is measured here in one place, with one thread and with all (`--threads`).
Rates are those of the best try, call costs the median. Memory is read and copied in buffers of 256 MiB.
"""

import ctypes
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Case, Line, NotHere
from benchmarks.ceiling import DTYPES, copy_rate, least_seconds, product_rate, read_rate
from benchmarks.pairing import short

ROUNDS = 20_000_000
CALLS, BATCHES = 2000, 9


def cases(options: Namespace) -> list[Case]:
    return [Case("memory", memory), Case("products", products), Case("fma", fused), Case("calls", calls)]


def memory(options: Namespace) -> Line:
    found = {}
    for threads in _counts(options):
        with _threads(threads):
            for name, rate in (("read", read_rate), ("copy", copy_rate)):
                found[f"{name}_GB_per_s_{_named(threads)}"] = short(rate() / 1e9)
    return {"figures": found}


def products(options: Namespace) -> Line:
    found = {}
    for threads in _counts(options):
        with _threads(threads):
            for name, dtype in DTYPES.items():
                found[f"{name}_GFLOP_per_s_{_named(threads)}"] = short(product_rate(dtype) / 1e9)
    return {"figures": found}


def fused(options: Namespace) -> Line:
    library = _compiled()
    operations = library.seqloom_benchmark_fma_operations() * ROUNDS
    seconds = least_seconds(lambda: library.seqloom_benchmark_fma(ROUNDS))
    return {"figures": {"fma_GFLOP_per_s_1_thread": short(operations / seconds / 1e9)}}


def calls(options: Namespace) -> Line:
    """Microseconds of a call that has next to nothing to do, by the way it goes."""
    x, y = torch.ones(8), torch.empty(8)
    leaf = torch.ones(8, requires_grad=True)

    def through_autograd() -> None:
        _Pass.apply(leaf).backward(x)

    ways: dict[str, Callable[[], object]] = {
        "torch_op_us": lambda: torch.add(x, x, out=y),
        "custom_op_in_python_us": lambda: _custom(x),
        "autograd_function_in_python_forward_and_backward_us": through_autograd,
    }
    found = {name: short(_microseconds(way)) for name, way in ways.items()}
    try:
        nothing = _compiled().seqloom_benchmark_nothing
        found["ctypes_us"] = short(_microseconds(lambda: nothing(x.data_ptr(), 8)))
    except NotHere as reason:
        return {"figures": found, "skipped": {"ctypes": str(reason)}}
    return {"figures": found}


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


@torch.library.custom_op("seqloom_benchmarks::custom", mutates_args=())
def _custom(x: Tensor) -> Tensor:
    return x.clone()


def _microseconds(call: Callable[[], object]) -> float:
    """Of one call, the median over batches of them."""
    times = []
    for _ in range(BATCHES):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append(time.perf_counter() - start)
    return 1e6 * median(times) / CALLS


@lru_cache
def _compiled() -> ctypes.CDLL:
    """The C++ file beside this one, compiled as our kernels are."""
    from seqloom.ops.native.compiler import BuildError, find_compiler

    with tempfile.TemporaryDirectory() as room:
        try:
            compiler = find_compiler()
            compiler.compile(Path(__file__).with_name("fma.cpp"), Path(room, "fma.o"))
            compiler.link([Path(room, "fma.o")], Path(room, "fma.so"))
        except BuildError as error:
            raise NotHere(str(error)) from None
        library = ctypes.CDLL(str(Path(room, "fma.so")))
    library.seqloom_benchmark_fma.restype = ctypes.c_float
    library.seqloom_benchmark_fma.argtypes = [ctypes.c_int64]
    library.seqloom_benchmark_nothing.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    library.seqloom_benchmark_nothing.restype = None
    return library


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _counts(options: Namespace) -> list[int]:
    return sorted({1, options.threads})


def _named(threads: int) -> str:
    return f"{threads}_thread{'s' if threads > 1 else ''}"
