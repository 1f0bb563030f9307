"""What a CUDA device can do at most, measured once a process: the rates of a large copy and of a large product."""

from functools import lru_cache

import torch

from benchmarks.ceiling import least_seconds

DEVICE = "cuda"


@lru_cache
def copy_rate() -> float:
    """Bytes per second read and written."""
    source = torch.randn(2**28, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / least_seconds(lambda: target.copy_(source), DEVICE)


@lru_cache
def product_rate() -> float:
    """FLOP/s of a large BF16 product."""
    a, b = (torch.randn(8192, 8192, device=DEVICE).bfloat16() for _ in range(2))
    return 2 * 8192**3 / least_seconds(lambda: a @ b, DEVICE)
