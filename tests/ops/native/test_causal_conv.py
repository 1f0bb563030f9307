"""The convolution in C++ against its formula in FP64, over sizes that fit no vector and no block."""

import pytest
import torch
from torch import Tensor

from native_checks import assert_near, guarded, results
from seqloom.ops.causal_conv import causal_conv, causal_conv_reference
from seqloom.ops.native.causal_conv import causal_conv_continued, causal_conv_native

SIZES = [  # rows, tokens, channels, taps
    (1, 1, 1, 4), (2, 3, 7, 4), (3, 64, 8, 4), (2, 65, 33, 4), (1, 300, 19, 4), (2, 37, 13, 2), (2, 37, 9, 1),
    (1, 20, 5, 16),
]  # fmt: skip


def inputs(B: int = 2, T: int = 37, C: int = 11, K: int = 4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    x, weight, bias, window = torch.randn(B, T, C), torch.randn(C, K), torch.randn(C), torch.randn(B, K - 1, C)
    return [x.to(dtype), weight, bias, window.to(dtype)]


def documents(B: int, T: int, W: int) -> Tensor:
    """Documents of 1 to 4 tokens, the last quarter of every other row padding; the first goes on from the window."""
    torch.manual_seed(1)
    numbers = torch.randint(2, (B, T)).cumsum(1)
    numbers[::2, T - T // 4 :] = -1
    return torch.cat([numbers[:, :1].expand(-1, W), numbers], 1)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_the_formula(sizes, packed):
    leaves = inputs(*sizes)
    numbers = documents(sizes[0], sizes[1], sizes[3] - 1) if packed else None
    truth = results(causal_conv_reference, *leaves, numbers, dtype=torch.float64)
    with guarded():
        mine = results(causal_conv_native, *leaves, numbers)
    assert_near(mine, truth)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("narrow_weights", [False, True])
def test_bf16_is_rounded_once(packed, narrow_weights):
    leaves = inputs(T=150, C=21, dtype=torch.bfloat16)
    if narrow_weights:
        leaves[1:3] = [leaf.bfloat16() for leaf in leaves[1:3]]
    numbers = documents(2, 150, 3) if packed else None
    with guarded():
        mine = results(causal_conv_native, *leaves, numbers)
    assert [part.dtype for part in mine] == [leaves[0].dtype, *(leaf.dtype for leaf in leaves)]
    assert_near(mine, results(causal_conv_reference, *leaves, numbers, dtype=torch.float64))
    exact = causal_conv_reference(*(leaf.double() for leaf in leaves), numbers)
    assert ((mine[0] - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


@pytest.mark.parametrize("numbers", [None, documents(2, 37, 3)])
def test_no_window_is_one_of_zeros(numbers):
    x, weight, bias, window = inputs()
    with guarded():
        mine = results(causal_conv_native, x, weight, bias, None, numbers)
    *zeros, _ = results(causal_conv_native, x, weight, bias, torch.zeros_like(window), numbers)
    assert all(map(torch.equal, mine, zeros))


def test_threads_and_other_rows_change_no_bit(monkeypatch):
    leaves, numbers = inputs(B=5, T=400, C=23), documents(5, 400, 3)
    one = results(causal_conv_native, *leaves, numbers)
    monkeypatch.setattr("seqloom.ops.native.causal_conv.threads", lambda: 3)
    for _ in range(5):
        again = results(causal_conv_native, *leaves, numbers)
        assert all(map(torch.equal, again, one))
    x, weight, bias, window = leaves
    alone = causal_conv_native(x[3:4, :100], weight, bias, window[3:4], numbers[3:4, :103])
    assert torch.equal(alone, one[0][3:4, :100])


def test_any_layout():
    x, weight, bias, window = inputs(B=2, T=20, C=11)
    wide = torch.full((2, 20, 30), torch.nan)
    wide[..., 5:16] = x
    straight = results(causal_conv_native, x, weight, bias, window, None)
    for layout in (wide[..., 5:16], x.permute(2, 0, 1).contiguous().permute(1, 2, 0)):
        turned = results(causal_conv_native, layout, weight.T.contiguous().T, bias, window, None)
        assert all(map(torch.equal, turned, straight))
    y = causal_conv_native(x.requires_grad_(), weight, bias, window, None)
    dy = torch.randn(11, 2, 20).permute(1, 2, 0)
    (turned,) = torch.autograd.grad(y, x, dy, retain_graph=True)
    assert torch.equal(turned, torch.autograd.grad(y, x, dy.contiguous())[0])


@pytest.mark.parametrize("sizes", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_nothing_gives_nothing(sizes):
    leaves = inputs(*sizes)
    mine = results(causal_conv_native, *leaves, None)
    assert [part.shape for part in mine] == [leaves[0].shape, *(leaf.shape for leaf in leaves)]
    assert all((part == 0).all() for part in mine)


@pytest.mark.parametrize("T", [0, 1, 2, 40])
@pytest.mark.parametrize("given", [False, True])
def test_a_step_leaves_the_window_of_the_next(T, given):
    x, weight, bias, window = inputs(T=T, C=13)
    with guarded():
        y, following = causal_conv_continued(x, weight, bias, window if given else None)
    before = window if given else torch.zeros_like(window)
    assert torch.equal(y, causal_conv_native(x, weight, bias, before, None))
    assert torch.equal(following, torch.cat([before, x], 1)[:, -3:])


def test_what_is_not_finite_stays_so():
    x, weight, bias, window = inputs(T=9, C=11)
    x[1, 4, 2] = torch.nan
    y, dx, dweight, dbias, _ = results(causal_conv_native, x, weight, bias, window, None)
    assert y.isnan().nonzero().tolist() == [[1, t, 2] for t in (4, 5, 6, 7)]
    assert dx.isnan().any(1).nonzero().tolist() == [[1, 2]]
    assert dweight.isnan().any(1).nonzero().tolist() == dbias.isnan().nonzero().tolist() == [[2]]


def test_is_what_runs_here():
    x, weight, bias, window = inputs()
    assert "NativeConv" in str(causal_conv(x.requires_grad_(), weight, bias, window)[0].grad_fn)
