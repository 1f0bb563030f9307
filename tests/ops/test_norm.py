"""Norms in all forms: the formula, torch's own, and gradients by finite differences."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqloom.ops.kernels import invariant
from seqloom.ops.norm import (
    gated_group_norm,
    gated_group_norm_reference,
    gated_group_norm_torch,
    rms_norm,
    rms_norm_reference,
    rms_norm_torch,
)

EPS = 1e-5


def numbers(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.fixture(params=["reference", "torch", "native"])
def form(request, monkeypatch):
    """Every implementation, behind the public entry, at a precision that it serves."""
    if request.param == "native":
        from seqloom.ops.native.build import why_not

        if reason := why_not():
            pytest.skip(reason)
    monkeypatch.setenv("SEQLOOM_KERNELS", f"norm={request.param}")
    return torch.float32 if request.param == "native" else torch.float64


def test_a_row_has_a_mean_square_of_one(form):
    y = rms_norm(7 * numbers(4, 50, dtype=form), torch.ones(50, dtype=form), EPS)
    torch.testing.assert_close(y.square().mean(-1), torch.ones(4, dtype=form), rtol=1e-5, atol=0)


def test_equals_torch(same, form):
    x, weight = numbers(3, 5, 12, dtype=form), numbers(12, dtype=form)
    close = {"rtol": 1e-4, "atol": 1e-5} if form == torch.float32 else {"rtol": 1e-11, "atol": 1e-11}
    same(lambda x, w: rms_norm(x, w, EPS), lambda x, w: F.rms_norm(x, (12,), w, EPS), x, weight, **close)


def test_gated_groups_equal_one_norm_for_each(same, form):
    def apart(y: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        parts = zip((y * F.silu(z)).split(4, -1), weight.split(4), strict=True)
        return torch.cat([F.rms_norm(part, (4,), gain, EPS) for part, gain in parts], -1)

    y, z, weight = (numbers(2, 5 + i, 12, dtype=form)[:, :5] for i in range(3))
    close = {"rtol": 1e-4, "atol": 1e-5} if form == torch.float32 else {"rtol": 1e-11, "atol": 1e-11}
    same(lambda *leaves: gated_group_norm(*leaves, 3, EPS), apart, y, z, weight[0, 0], **close)


def test_zeros_have_a_norm_and_gradients(form):
    x = torch.zeros(2, 6, dtype=form, requires_grad=True)
    y = rms_norm(x, torch.ones(6, dtype=form), EPS)
    assert (y == 0).all()
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, EPS**-0.5))


def test_fast_forms_equal_the_formula(same):
    x, weight = numbers(3, 7, 12), numbers(12)
    close = {"rtol": 1e-12, "atol": 1e-12}
    same(lambda x, w: rms_norm_torch(x, w, EPS), lambda x, w: rms_norm_reference(x, w, EPS), x, weight, **close)
    same(
        lambda *leaves: gated_group_norm_torch(*leaves, 4, EPS),
        lambda *leaves: gated_group_norm_reference(*leaves, 4, EPS),
        x, numbers(3, 8, 12)[:, :7], weight, **close,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_has_the_format_of_what_comes(dtype):
    x, weight = numbers(2, 3, 8, dtype=torch.float32).to(dtype), torch.ones(8)
    assert rms_norm(x, weight, EPS).dtype == dtype
    assert gated_group_norm(x.float(), x, weight, 2, EPS).dtype == dtype
    assert gated_group_norm(x, x.float(), weight, 2, EPS).dtype == torch.float32


@pytest.mark.parametrize("implementation", ["torch", "native"])
def test_where_invariance_is_asked_for_no_row_sees_another(implementation, monkeypatch):
    monkeypatch.setenv("SEQLOOM_KERNELS", f"norm={implementation}")
    x, z, weight = (numbers(*shape, dtype=torch.float32) for shape in ((40, 1, 60), (40, 60, 1), (60,)))
    z = z.transpose(1, 2)
    with invariant(), torch.no_grad():
        plain, gated = rms_norm(x, weight, EPS), gated_group_norm(x, z, weight, 4, EPS)
        for rows in (1, 2, 3, 7, 30):
            assert torch.equal(rms_norm(x[-rows:], weight, EPS), plain[-rows:])
            assert torch.equal(gated_group_norm(x[-rows:], z[-rows:], weight, 4, EPS), gated[-rows:])
