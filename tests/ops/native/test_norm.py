"""Norms in C++ against their formulas in FP64, over sizes that fit no vector and no task."""

import pytest
import torch
from torch import Tensor

from native_checks import assert_near, guarded, results
from seqloom.ops.native.norm import gated_group_norm_native, rms_norm_native
from seqloom.ops.norm import gated_group_norm, gated_group_norm_reference, rms_norm, rms_norm_reference

EPS = 1e-5
FP32, BF16 = torch.float32, torch.bfloat16


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (2, 3, 33), (1031, 8), (130, 100), (7, 2, 3, 65), (64,)])
def test_rms_norm_equals_the_formula(shape, dtype):
    x, weight = 3 * numbers(*shape).to(dtype), 1 + numbers(shape[-1], seed=1)
    eps = 10.0 if shape[-1] == 1 else EPS  # the gradient of one number alone is nothing but rounding without it
    truth = results(rms_norm_reference, x, weight, eps, dtype=torch.float64)
    with guarded():
        mine = results(rms_norm_native, x, weight, eps)
    assert [part.dtype for part in mine] == [dtype, dtype, FP32]
    assert_near(mine, truth)


@pytest.mark.parametrize("formats", [(FP32, FP32), (FP32, BF16), (BF16, BF16)])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 1), (2, 3, 5, 1), (2, 3, 5, 7), (3, 350, 3, 8), (1, 70, 4, 33), (1, 2, 1, 300)]
)
def test_gated_norm_equals_the_formula(sizes, formats):
    batch, length, groups, width = sizes
    y, z = (2 * numbers(batch, length, groups * width, seed=i).to(dtype) for i, dtype in enumerate(formats))
    weight = 1 + numbers(groups * width, seed=2)
    eps = 10.0 if width == 1 else EPS
    truth = results(gated_group_norm_reference, y, z, weight, groups, eps, dtype=torch.float64)
    with guarded():
        mine = results(gated_group_norm_native, y, z, weight, groups, eps)
    assert [part.dtype for part in mine] == [formats[1], *formats, FP32]
    assert_near(mine, truth)


def test_gains_stored_narrow_give_narrow_gradients():
    x, weight = numbers(40, 24).bfloat16(), numbers(24, seed=1).bfloat16()
    mine = results(rms_norm_native, x, weight, EPS)
    assert mine[2].dtype == BF16
    assert_near(mine, results(rms_norm_reference, x, weight, EPS, dtype=torch.float64))
    mine = results(gated_group_norm_native, x[None], x[None] + 1, weight, 3, EPS)
    assert mine[3].dtype == BF16
    assert_near(mine, results(gated_group_norm_reference, x[None], x[None] + 1, weight, 3, EPS, dtype=torch.float64))


def test_threads_and_other_rows_change_no_bit(monkeypatch):
    x, z, weight = numbers(3, 250, 42), numbers(3, 250, 42, seed=1), numbers(42, seed=2)
    one = results(rms_norm_native, x, weight, EPS), results(gated_group_norm_native, x, z, weight, 2, EPS)
    monkeypatch.setattr("seqloom.ops.native.norm.threads", lambda: 3)
    for _ in range(5):
        again = results(rms_norm_native, x, weight, EPS), results(gated_group_norm_native, x, z, weight, 2, EPS)
        assert all(torch.equal(*pair) for parts in zip(again, one, strict=True) for pair in zip(*parts, strict=True))
    assert torch.equal(rms_norm_native(x[1:2, 7:9], weight, EPS), one[0][0][1:2, 7:9])
    assert torch.equal(gated_group_norm_native(x[1:2, 7:9], z[1:2, 7:9], weight, 2, EPS), one[1][0][1:2, 7:9])


def test_any_layout():
    x, z, weight = numbers(2, 5, 18), numbers(2, 5, 18, seed=1), numbers(18, seed=2)
    wide = torch.full((2, 5, 50), torch.nan)
    wide[..., 3:21] = x
    turned = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    spread = weight[:, None].expand(-1, 2).contiguous()[:, 0]
    for layout in (wide[..., 3:21], turned):
        straight = results(rms_norm_native, x, weight, EPS)
        assert all(map(torch.equal, results(rms_norm_native, layout, spread, EPS), straight))
        for pair, other in (((x, z), (layout, z)), ((z, x), (z, layout))):
            straight = results(gated_group_norm_native, *pair, weight, 3, EPS)
            assert all(map(torch.equal, results(gated_group_norm_native, *other, spread, 3, EPS), straight))
    x.requires_grad_()
    y = rms_norm_native(x, weight, EPS)
    dy = numbers(18, 2, 5, seed=3).permute(1, 2, 0)
    grads = [torch.autograd.grad(y, x, layout, retain_graph=True)[0] for layout in (dy, dy.contiguous())]
    assert torch.equal(*grads)


def test_frozen_gains_get_no_gradient():
    x, weight = numbers(40, 24).requires_grad_(), numbers(24, seed=1)
    rms_norm_native(x, weight, EPS).sum().backward()
    expected = results(rms_norm_reference, x, weight, EPS)
    assert weight.grad is None
    assert x.grad.shape == expected[1].shape


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4), (2, 5, 0)])
def test_nothing_gives_nothing(shape):
    x, weight = numbers(*shape), numbers(shape[-1], seed=1)
    for parts in (results(rms_norm_native, x, weight, EPS), results(gated_group_norm_native, x, x, weight, 2, EPS)):
        assert parts[0].shape == parts[1].shape == shape
        assert (parts[-1] == 0).all()


def test_what_is_not_finite_stays_so():
    x, weight = numbers(3, 20), torch.ones(20)
    x[1, 4] = torch.nan
    for y in (rms_norm_native(x, weight, EPS), gated_group_norm_native(x[None], x[None], weight, 1, EPS)[0]):
        assert y.isnan().any(-1).tolist() == [False, True, False]


def test_is_what_runs_here():
    x, weight = numbers(1, 3, 20).requires_grad_(), torch.ones(20)
    assert "_RmsNorm" in str(rms_norm(x, weight, EPS).grad_fn)
    assert "_GatedGroupNorm" in str(gated_group_norm(x, x, weight, 2, EPS).grad_fn)
