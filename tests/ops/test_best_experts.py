import pytest
import torch

from seqloom.ops.best_experts import best_experts, best_reference, best_torch


def scores(*shape: int) -> torch.Tensor:
    """No two alike in a row."""
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(*shape, generator=generator).argsort(-1)
    return (order.float() - shape[-1] // 2) / shape[-1]


@pytest.mark.parametrize("form", [best_reference, best_torch, best_experts])
def test_the_largest_come_first(form):
    rows = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.9, -1.0, 0.0, 2.0]])
    assert form(rows, None, 2).tolist() == [[1, 2], [3, 0]]
    assert form(rows, torch.tensor([1.0, 0.0, 0.0, -5.0]), 3).tolist() == [[0, 1, 2], [0, 2, 1]]


@pytest.mark.parametrize(("shape", "count"), [((37, 8), 3), ((1, 1), 1), ((2, 5, 64), 22), ((0, 8), 2), ((70, 33), 33)])
@pytest.mark.parametrize("biased", [False, True])
def test_forms_agree(shape, count, biased):
    bias = torch.arange(shape[-1]) % 3 * 7.0 if biased else None
    expected = best_reference(scores(*shape), bias, count)
    assert torch.equal(best_torch(scores(*shape), bias, count), expected)
    assert torch.equal(best_experts(scores(*shape), bias, count), expected)


def test_it_has_no_gradient():
    assert not best_experts(scores(4, 8).requires_grad_(), None, 2).requires_grad
