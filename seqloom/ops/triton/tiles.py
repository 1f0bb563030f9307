"""What every Triton kernel here stands on: products of tiles, tile sizes, and how a kernel is launched.

Tile sizes, warps and pipeline stages follow from shapes and dtypes alone, never from timing, and no kernel adds
atomically: the same inputs give the same bits on every run.

Products of BF16 are summed in FP32 by the tensor cores. Those of FP32 run there too, each as three TF32 products
(about 2^-22 off), or as one where torch may use TF32 itself; plain FP32 products of tiles would spill registers.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

ON_TRIAL: dict[str, dict[str, int]] = {}
"""Kernel -> launch options that a benchmark tries in place of its own."""


def power_of_two(size: int, least: int = 16) -> int:
    """The side of a tile that holds `size` numbers; 16 is the least that tensor cores multiply."""
    return max(least, triton.next_power_of_2(size))


def precision(dtype: torch.dtype) -> str:
    """How tiles of this dtype are multiplied."""
    if dtype != torch.float32:
        return "ieee"  # exact products, in FP32 sums
    # `allow_tf32` raises where somebody has set the newer name; this one follows both.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, warps: int, stages: int = 1, **constants: Any) -> None:
    """Start one program per point of the grid, on the device of the first tensor."""
    first = next(arg for arg in args if isinstance(arg, Tensor))
    options = {"num_warps": warps, "num_stages": stages, **ON_TRIAL.get(kernel.fn.__name__, {})}
    with torch.cuda.device_of(first):
        kernel[grid](*args, **constants, **options, enable_fp_fusion=True)


def unit_stride(x: Tensor) -> Tensor:
    """The tensor itself where its last axis is dense, else a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


@triton.jit
@no_type_check
def dot(a, b, PRECISION: tl.constexpr):
    """a b in FP32. Triton's interpreter multiplies BF16 as if it were integers, so there both are widened first."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)
    return tl.dot(a, b, input_precision=PRECISION)
