"""What this machine can do at most, measured beside what was reached.

Arithmetic: the fastest of several large square matrix products in torch. In BF16 the faster of BF16 and FP32 counts, as
a processor without BF16 units computes in FP32 at best. Memory: the fastest pass over a buffer far larger than the
caches. A limit is the best of several tries and not their median: whatever disturbs a try only makes it slower.
"""

import time
from collections.abc import Callable

import torch

READ_BYTES = 1 << 28
WIDTHS = (512, 1024, 2048)
TRIES = 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def product_rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """FLOP/s of the fastest square matrix product, with the threads that torch uses now."""
    best = 0.0
    for width in WIDTHS:
        a = torch.randn(width, width, device=device).to(dtype)
        seconds = least_seconds(lambda a=a: a @ a.mT, device)  # type: ignore[misc]
        best = max(best, 2 * width**3 / seconds)
        if seconds > 0.2:  # wider products of this kind would take long and be no faster
            break
    return best


def arithmetic_rate(format: str, device: str = "cpu") -> float:
    """FLOP/s that a product in this number format can reach."""
    return max(product_rate(dtype, device) for name, dtype in DTYPES.items() if name == "fp32" or name == format)


def read_rate() -> float:
    """Bytes per second read from memory, with the threads that torch uses now; in large pages, as weights are."""
    try:
        from seqloom.nn.large_pages import empty
    except ImportError:  # a package of an older commit (`base.py`), whose weights lie in small ones
        empty = torch.empty
    buffer = empty(READ_BYTES // 4, dtype=torch.float32, device=torch.device("cpu")).fill_(1)
    return READ_BYTES / least_seconds(buffer.sum, tries=4 * TRIES)


def copy_rate() -> float:
    """Bytes per second read and written while memory is copied."""
    source = torch.ones(READ_BYTES // 8)
    target = torch.zeros_like(source)
    return READ_BYTES / least_seconds(lambda: target.copy_(source))


def least_seconds(run: Callable[[], object], device: str = "cpu", tries: int = TRIES) -> float:
    """The shortest of several tries, after one that warms up."""
    times = []
    for _ in range(tries + 1):
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
