"""Compile every kernel that an op launches, forward and backward, for an H100 that need not be here.

    python tests/ops/triton/compiling.py ssd ctc        or, without names, of all ops

Values are not computed. Prints registers, bytes of stack and shared memory of every kernel, and fails where one does
not compile or wants more shared memory than there is.
"""

import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))
warnings.simplefilter("ignore")

import torch  # noqa: E402
import triton  # noqa: E402
from torch import Tensor  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.driver import driver  # noqa: E402

SHARED_MEMORY = 227 * 1024


class AbsentGPU:
    """As much of a driver as compiling asks for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def compile_only(kernel: Any, grid: tuple[int, ...], *args: Any, warps: int, stages: int = 1, **constants: Any) -> None:
    """In place of `tiles.launch`."""
    done = kernel.warmup(*args, grid=grid, **constants, num_warps=warps, num_stages=stages, enable_fp_fusion=True)
    assert done.metadata.shared <= SHARED_MEMORY, f"{kernel.fn.__name__} wants {done.metadata.shared} bytes"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(done.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=False).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", report)
    registers, stack = usage.groups() if usage else ("?", "?")
    print(f"{kernel.fn.__name__:20} {grid!s:16} {registers} registers, {stack} stack, {done.metadata.shared} shared")


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype).requires_grad_()


def ssd(dtype: torch.dtype, form: Any) -> Tensor:
    x, b, c = leaf(1, 512, 32, 64, dtype=dtype), leaf(1, 512, 4, 128, dtype=dtype), leaf(1, 512, 4, 128, dtype=dtype)
    documents = torch.zeros(1, 512, dtype=torch.int32)
    return form(x, leaf(1, 512, 32), leaf(32), b, c, None, documents, chunk=256, skip=leaf(32))[0]


def causal_conv(dtype: torch.dtype, form: Any) -> Tensor:
    numbers = torch.zeros(2, 259, dtype=torch.int32)
    return form(leaf(2, 256, 1024, dtype=dtype), leaf(1024, 4), leaf(1024), leaf(2, 3, 1024, dtype=dtype), numbers)


def experts(dtype: torch.dtype, form: Any) -> Tensor:
    up, down = leaf(16, 512, 1024, dtype=dtype), leaf(16, 1024, 512, dtype=dtype)
    return form(leaf(2048, 1024, dtype=dtype), torch.randint(16, (2048, 2)), leaf(2048, 2), up, down)


def norm(dtype: torch.dtype, form: Any) -> Tensor:
    from seqloom.ops.triton.norm import rms_norm_triton

    rms_norm_triton(leaf(2, 64, 2048, dtype=dtype), leaf(2048), 1e-5).backward(torch.empty(2, 64, 2048, dtype=dtype))
    return form(leaf(2, 64, 2048, dtype=dtype), leaf(2, 64, 2048, dtype=dtype), leaf(2048), 8, 1e-5)


def cross_entropy(dtype: torch.dtype, form: Any) -> Tensor:
    return form(leaf(16, 64, dtype=dtype), leaf(8192, 64), torch.zeros(16, dtype=torch.int64), 1e-4)[0]


def ctc(dtype: torch.dtype, form: Any) -> Tensor:
    length, labels = torch.full((4,), 150), torch.zeros(4, 40, dtype=torch.int64)
    return form(leaf(4, 150, 29, dtype=dtype), length, labels, torch.full((4,), 40))


def paged_attention(dtype: torch.dtype, form: Any) -> Tensor:
    """Few queries, then as many over as large pages as it serves."""
    from seqloom.ops.triton.paged_attention import serves

    tables, lengths = torch.zeros(4, 16, dtype=torch.int32), torch.zeros(4, dtype=torch.int64)
    for heads, tokens, page in ((16, 3, 64), (64, 4, 128 // dtype.itemsize * 2)):
        q, pages = torch.empty(4, heads, tokens, 128, dtype=dtype), torch.empty(64, 2, 128, page, dtype=dtype)
        assert serves(q, pages)
        y = form(q, pages, pages.mT.contiguous(), tables, lengths, 0.1)
    return y


OPS: dict[str, tuple[Callable[[torch.dtype, Any], Tensor], str]] = {
    "ssd": (ssd, "ssd_triton"),
    "causal_conv": (causal_conv, "causal_conv_triton"),
    "experts": (experts, "experts_triton"),
    "norm": (norm, "gated_group_norm_triton"),
    "cross_entropy": (cross_entropy, "linear_cross_entropy_triton"),
    "ctc": (ctc, "ctc_loss_triton"),
    "paged_attention": (paged_attention, "paged_attention_triton"),
}


def main(ops: list[str]) -> None:
    driver.set_active(AbsentGPU())
    from seqloom.ops.triton import tiles

    tiles.launch = compile_only
    for op in ops or OPS:
        compile_op(op)


def compile_op(op: str) -> None:
    make, name = OPS[op]
    form = getattr(import_module(f"seqloom.ops.triton.{op}"), name)
    y = make(torch.bfloat16, form)
    if y.requires_grad:
        y.backward(torch.empty_like(y))
    if op == "paged_attention":
        make(torch.float32, form)
    if op == "ssd":
        with torch.no_grad():  # a token in decoding
            form(
                *(torch.empty(1, 1, *s) for s in ((4, 16), (4,))),
                torch.empty(4),
                *[torch.empty(1, 1, 2, 16)] * 2,
                chunk=64,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
