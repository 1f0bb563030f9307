"""How Triton kernels are compared: values and gradients against a reference in FP64.

They run on a GPU, or under Triton's interpreter, which takes CPU tensors and must be asked for before anything imports
triton: `TRITON_INTERPRET=1 python -m pytest tests/ops/triton`. Elsewhere nothing here is collected; `test_triton.py`
one folder up runs these files in processes of their own.
"""

import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if importlib.util.find_spec("triton") is None or not (INTERPRETED or torch.cuda.is_available()):
    collect_ignore_glob = ["test_*.py"]

DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
"""Largest norm of a difference as a share of the norm of the truth."""


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **options: Any) -> Tensor:
            memory = make(*args, **options)
            return memory.fill_(math.nan) if memory.is_floating_point() else memory

        return made

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))


@pytest.fixture
def near() -> Callable[..., None]:
    """Assert that a kernel agrees with a reference, which gets the same numbers in FP64."""

    def check(kernel: Callable[..., Any], reference: Callable[..., Any], *inputs: Any, worst: float = 1.0) -> None:
        """
        Args:
            inputs: for both; floating ones get gradients. The least precise sets the tolerance, `worst` times it.
        """
        mine = [_leaf(value, None) for value in inputs]
        theirs = [_leaf(value, torch.float64) for value in inputs]
        found, truth = _results(kernel, mine), _results(reference, theirs)
        assert len(found) == len(truth)
        dtypes = [value.dtype for value in mine if _floating(value)]
        tolerance = worst * max(TOLERANCE[dtype] for dtype in dtypes)
        assert [g.dtype for g in found[-len(dtypes) :]] == dtypes
        for place, (one, other) in enumerate(zip(found, truth, strict=True)):
            gap = float((one.double() - other).norm() / other.norm().clamp(min=1e-9))
            assert gap < tolerance, f"result {place}: off by {gap:.1e} of its norm"

    return check


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _leaf(value: Any, dtype: torch.dtype | None) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach().to(DEVICE)
    return value.to(dtype or value.dtype).clone().requires_grad_() if value.is_floating_point() else value


def _results(function: Callable[..., Any], leaves: list[Any]) -> list[Tensor]:
    outputs = function(*leaves)
    outputs = [outputs] if isinstance(outputs, Tensor) else [y for y in outputs if y.requires_grad]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y) for y in outputs]
    gradients = torch.autograd.grad(outputs, [leaf for leaf in leaves if _floating(leaf)], weights)
    return [*(y.detach() for y in outputs), *gradients]
