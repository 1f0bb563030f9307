"""How every op is compared: values and gradients of two functions on the same tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


def _flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _leaf(value: Any) -> Any:
    return value.detach().clone().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value


@pytest.fixture
def same() -> Callable[..., None]:
    """Assert that two functions agree on outputs and on the gradients of all floating inputs, under random weights."""

    def check(one: Callable[..., Any], other: Callable[..., Any], *inputs: Any, rtol: float, atol: float) -> None:
        found = []
        for function in (one, other):
            leaves = [_leaf(value) for value in inputs]
            outputs = _flat(function(*leaves))
            generator = torch.Generator().manual_seed(0)
            weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in outputs]
            wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
            gradients = torch.autograd.grad(outputs, wanted, weights)
            found.append([*(y.detach() for y in outputs), *gradients])
        assert len(found[0]) == len(found[1])
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)

    return check
