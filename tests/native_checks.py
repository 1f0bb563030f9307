"""What every native kernel is held against: the truth in FP64, and memory that shows what was touched."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from seqloom.ops.native.build import library, why_not

GUARD = 64  # numbers before and after what a kernel writes to
UNTOUCHED = 4096.5  # a BF16 and an FP32 number, unlikely as a result


@contextmanager
def guarded() -> Iterator[None]:
    """Memory that is asked for comes full of NaN, and what lies around it must stay as it was; skips where there is no
    native library."""
    if reason := why_not():
        pytest.skip(reason)
    found, given, empty = library(), [], torch.empty

    def with_guards(*size: Any, dtype: torch.dtype) -> Tensor:
        shape = torch.Size(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        memory = torch.full((shape.numel() + 2 * GUARD,), UNTOUCHED, dtype=dtype)
        inside = memory[GUARD : GUARD + shape.numel()]
        inside.fill_(torch.nan)
        given.append(memory)
        return inside.view(shape).detach()

    assert found is not None
    found.seqloom_poison_scratch(1)
    torch.empty = with_guards  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.empty = empty
        found.seqloom_poison_scratch(0)
    assert given
    for memory in given:
        assert (memory[:GUARD] == UNTOUCHED).all()
        assert (memory[-GUARD:] == UNTOUCHED).all()


def results(function: Callable[..., Tensor], *inputs: Any, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Output of a function, and the gradients of its floating inputs under fixed weights that every format holds.

    Args:
        dtype: compute everything in it.
    """
    leaves = [
        value.detach().to(dtype or value.dtype).requires_grad_()
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for value in inputs
    ]
    y = function(*leaves)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).bfloat16().to(y.dtype)
    wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, wanted, weights)]


def assert_near(mine: list[Tensor], truth: list[Tensor]) -> None:
    """To a few roundings of the largest number of each tensor, in the format it is stored in."""
    assert len(mine) == len(truth)
    for number, (here, there) in enumerate(zip(mine, truth, strict=True)):
        assert here.shape == there.shape
        if there.numel():
            unit = 2**-7 if here.dtype == torch.bfloat16 else 2**-19
            error = float((here.double() - there.double()).abs().max() / there.double().abs().max().clamp(min=1e-3))
            assert error < unit, f"result {number} is off by {error:.1e} of its largest number"
