from typing import Any

import pytest
import torch
from torch import Tensor

from seqloom.ops.experts import experts_reference
from seqloom.ops.triton.experts import experts_triton


def inputs(S: int, K: int, E: int, idle: int = 0, I: int = 6, F: int = 5) -> list[Tensor]:  # noqa: E741
    """The last `idle` experts are never chosen."""
    torch.manual_seed(0)
    x, up, down = (torch.randn(*shape) for shape in ((S, I), (E, F, I), (E, I, F)))
    weights, indices = torch.rand(S, E - idle).topk(K, -1)
    return [x, weights, up, down, indices]


def kernel(x: Tensor, weights: Tensor, up: Tensor, down: Tensor, indices: Tensor) -> Tensor:
    return experts_triton(x, indices, weights, up, down)


def reference(x: Tensor, weights: Tensor, up: Tensor, down: Tensor, indices: Tensor) -> Tensor:
    return experts_reference(x, indices, weights, up, down)


@pytest.mark.parametrize(
    ("S", "K", "E", "idle"), [(37, 3, 4, 0), (1, 1, 1, 0), (7, 2, 8, 5)], ids=["several tiles", "one", "idle experts"]
)
def test_equals_the_reference(near, S, K, E, idle):
    near(kernel, reference, *inputs(S, K, E, idle))


def test_widths_beyond_one_tile(near):
    near(kernel, reference, *inputs(5, 1, 2, I=70, F=65))


def test_bf16_weighs_in_fp32(near):
    x, weights, up, down, indices = inputs(19, 2, 3)
    near(kernel, reference, x.bfloat16(), 5 * weights, up.bfloat16(), down.bfloat16(), indices)


def test_expanded_gradients_and_strided_inputs(near):
    def summed(form: Any) -> Any:
        return lambda x, weights, up, down, indices: form(x.mT, weights, up.mT, down.mT, indices).sum()

    x, weights, up, down, indices = inputs(4, 1, 2)
    near(
        summed(kernel), summed(reference), x.mT.contiguous(), weights, up.mT.contiguous(), down.mT.contiguous(), indices
    )


def test_no_tokens_give_zero_gradients():
    x, weights, up, down, indices = inputs(0, 2, 3)
    up = up.requires_grad_()
    y = kernel(x, weights, up, down, indices)
    assert y.shape == x.shape
    assert (torch.autograd.grad(y.sum(), up)[0] == 0).all()
