"""Adapted experts against the plain ones with their adapted matrices formed."""

import pytest
import torch
from torch import Tensor

from seqloom.ops.adapted_experts import LowRank, adapted_experts, adapted_reference, adapted_sorted
from seqloom.ops.experts import experts_reference, experts_sorted


def inputs(S=37, K=3, E=8, R=2, dtype=torch.float64) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    shapes = ((S, 6), (E, 5, 6), (E, 6, 5), (E, R, 6), (E, 5, R), (E, R, 5), (E, 6, R))
    x, up, down, *factors = (torch.randn(*shape, dtype=dtype) for shape in shapes)
    weights, indices = torch.rand(S, E, dtype=torch.promote_types(dtype, torch.float32)).topk(K, -1)
    return x, indices, weights, up, down, *factors


def in_form(form, up: Tensor, down: Tensor, indices: Tensor):
    """A form of the op as a function of what may have a gradient."""
    return lambda x, weights, *factors: form(
        x, indices, weights, up, down, LowRank(*factors[:2]), LowRank(*factors[2:]), 0.7
    )


@pytest.mark.parametrize(("S", "K", "E", "R"), [(37, 3, 8, 2), (1, 1, 1, 1), (5, 8, 8, 3), (2, 4, 64, 2)])
def test_sorted_equals_reference(same, S, K, E, R):
    x, indices, weights, up, down, *factors = inputs(S, K, E, R)
    forms = [in_form(form, up, down, indices) for form in (adapted_sorted, adapted_reference)]
    same(*forms, x, weights, *factors, rtol=1e-10, atol=1e-10)


def test_gradients_match_finite_differences():
    x, indices, weights, up, down, *factors = inputs(S=2, K=2, E=3)
    leaves = [value.requires_grad_() for value in (x, weights, *factors)]
    assert torch.autograd.gradcheck(in_form(adapted_sorted, up, down, indices), leaves)


@pytest.mark.parametrize("zero", ["b", "rank"])
def test_an_adapter_that_does_nothing_changes_no_bit(zero):
    x, indices, weights, up, down, *factors = inputs(dtype=torch.float32)
    if zero == "b":
        factors[1].zero_(), factors[3].zero_()
    else:
        factors = [factors[0][:, :0], factors[1][..., :0], factors[2][:, :0], factors[3][..., :0]]
    adapted = in_form(adapted_sorted, up, down, indices)(x, weights, *factors)
    assert torch.equal(adapted, experts_sorted(x, indices, weights, up, down))


def test_narrow_stored_matrices_are_widened():
    x, indices, weights, up, down, *factors = inputs(dtype=torch.float32)
    narrow = in_form(adapted_sorted, up.bfloat16(), down.bfloat16(), indices)(x, weights, *factors)
    wide = in_form(adapted_sorted, up.bfloat16().float(), down.bfloat16().float(), indices)(x, weights, *factors)
    assert torch.equal(narrow, wide)


def test_bf16_stays_near_the_truth():
    x, indices, weights, up, down, *factors = inputs(dtype=torch.bfloat16)
    leaves = [value.requires_grad_() for value in (x, weights, *factors)]
    y = in_form(adapted_sorted, up, down, indices)(*leaves)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = in_form(adapted_reference, up.double(), down.double(), indices)(*wide)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, rtol=0.05, atol=0.05 * expected.abs().max().item())
    gradients = torch.autograd.grad(y.float().sum(), leaves)
    for mine, leaf, truth in zip(gradients, leaves, torch.autograd.grad(expected.sum(), wide), strict=True):
        assert mine.dtype == leaf.dtype
        torch.testing.assert_close(mine.double(), truth, rtol=0.05, atol=0.05 * truth.abs().max().item())


def test_override_picks_the_reference(monkeypatch):
    x, indices, weights, up, down, *factors = inputs()
    monkeypatch.setenv("SEQLOOM_KERNELS", "experts=reference")
    adapters = LowRank(*factors[:2]), LowRank(*factors[2:])
    formed = [matrix + 2.0 * adapter.b @ adapter.a for matrix, adapter in zip((up, down), adapters, strict=True)]
    result = adapted_experts(x, indices, weights, up, down, *adapters, 2.0)
    assert torch.equal(result, experts_reference(x, indices, weights, *formed))
