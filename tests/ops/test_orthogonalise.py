"""The Newton-Schulz iteration against singular value decompositions, and its forms against each other."""

import pytest
import torch
from torch import Tensor

from native_checks import guarded
from seqloom.ops import orthogonalise as module
from seqloom.ops.native.build import why_not
from seqloom.ops.native.orthogonalise import orthogonalise_native
from seqloom.ops.orthogonalise import (
    COEFFICIENTS,
    ITERATIONS,
    orthogonalise,
    orthogonalise_reference,
    orthogonalise_torch,
)

SHAPES = [(3, 8, 8), (5, 16, 40), (1, 1, 7), (2, 49, 51), (1, 261, 270), (2, 51, 23), (70, 5, 9)]


def matrices(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["reference", "torch", "native"])
def form(request, monkeypatch):
    """Every implementation, behind the public entry."""
    if request.param == "native" and (reason := why_not()):
        pytest.skip(reason)
    monkeypatch.setenv("SEQLOOM_KERNELS", f"orthogonalise={request.param}")


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("shape", SHAPES)
def test_levels_singular_values_and_keeps_directions(shape):
    x = matrices(*shape)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    inner = u.mT @ orthogonalise(x) @ vh.mT
    levels = inner.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(inner, torch.diag_embed(levels), atol=1e-4, rtol=0)
    well = s / s.norm(dim=-1, keepdim=True) > 0.02  # five steps lift what is not almost singular
    assert levels[well].min() > 0.6
    assert levels.max() < 1.25


@pytest.mark.usefixtures("form")
def test_zero_stays_zero_and_nothing_gives_nothing():
    assert orthogonalise(torch.zeros(2, 3, 4)).eq(0).all()
    assert orthogonalise(torch.zeros(0, 3, 4)).shape == (0, 3, 4)


@pytest.mark.usefixtures("form")
def test_scale_does_not_matter():
    x = matrices(2, 6, 9)
    torch.testing.assert_close(orthogonalise(x), orthogonalise(1e4 * x))


@pytest.mark.parametrize("shape", SHAPES)
def test_fast_forms_equal_the_formula(shape, monkeypatch):
    monkeypatch.setattr(module, "_TOGETHER", 200)  # a few matrices at a time
    x = matrices(*shape)
    x[0] *= torch.logspace(0, -6, shape[2])  # and as nearly singular as gradients are
    truth = orthogonalise_reference(x.double(), COEFFICIENTS, ITERATIONS)
    torch.testing.assert_close(orthogonalise_torch(x.double(), COEFFICIENTS, ITERATIONS), truth)
    with guarded():
        mine = orthogonalise_native(x, COEFFICIENTS, ITERATIONS)
    torch.testing.assert_close(mine.double(), truth, rtol=0, atol=2e-5)


def test_threads_and_other_matrices_change_no_bit(monkeypatch):
    x = matrices(4, 101, 150)
    with guarded():
        together = orthogonalise_native(x, COEFFICIENTS, ITERATIONS)
    for count in (1, 3, 8):  # threads that take matrices in turn, or the rows of one
        monkeypatch.setattr("seqloom.ops.native.orthogonalise.threads", lambda count=count: count)
        for _ in range(3):
            assert torch.equal(orthogonalise_native(x, COEFFICIENTS, ITERATIONS), together)
    turned = x.mT.contiguous().mT
    assert torch.equal(orthogonalise_native(turned[2:3], COEFFICIENTS, ITERATIONS), together[2:3])


def test_what_is_not_finite_stays_in_its_matrix():
    x = matrices(3, 5, 9)
    x[1, 2, 3] = torch.nan
    y = orthogonalise(x)
    assert y.isnan().flatten(1).any(1).tolist() == [False, True, False]
