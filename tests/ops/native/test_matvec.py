"""Few rows against a large matrix: the exact product, and the same bits whatever stands beside a row or weight."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from seqloom.ops.native.build import why_not
from seqloom.ops.native.call import FLAG, kernel, pointer
from seqloom.ops.native.matrix import matrices
from seqloom.ops.native.matvec import MOST_ROWS, _form, matvec

FP32, BF16 = torch.float32, torch.bfloat16
FORMATS = [(FP32, FP32), (FP32, BF16), (BF16, BF16), (BF16, FP32)]


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    if reason := why_not():
        pytest.skip(reason)
    poison = kernel("poison_scratch", FLAG)
    poison(1)
    yield
    poison(0)


def inputs(rows: int, outputs: int, width: int, x: torch.dtype = FP32, w: torch.dtype = FP32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, width).to(x), torch.randn(outputs, width).to(w)


@pytest.mark.parametrize(("x_format", "w_format"), FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 17), (64, 100), (130, 384), (13, 32), (9, 33), (3000, 41)])
def test_equals_the_product_in_fp64(shape: tuple[int, int], x_format: torch.dtype, w_format: torch.dtype) -> None:
    for rows in (1, 2, 3, 4, 7, MOST_ROWS, 70):
        x, w = inputs(rows, *shape, x_format, w_format)
        exact = x.double() @ w.to(x_format).double().T
        size = x.double().abs() @ w.to(x_format).double().abs().T  # rounding grows with the terms, not with their sum
        y = matvec(x, w)
        assert y.dtype == x_format
        error = (y.double() - exact).abs() - 1e-6 * size
        assert (error <= (exact.abs() * 2**-8 if x_format == BF16 else 0)).all()


@pytest.mark.parametrize(("x_format", "w_format"), FORMATS)
def test_no_row_and_no_weight_sees_another(x_format: torch.dtype, w_format: torch.dtype) -> None:
    for width in (77, 2101):  # in one stretch, and in cuts where rows are many
        x, w = inputs(150, 2001 if width == 77 else 55, width, x_format, w_format)
        y = matvec(x, w)
        for rows in (*range(1, 10), MOST_ROWS - 1, MOST_ROWS, MOST_ROWS + 1, 75, 131):
            assert torch.equal(matvec(x[-rows:], w), y[-rows:])
        for first in (1, 2, 3, 50):
            assert torch.equal(matvec(x, w[first:]), y[:, first:])
            assert torch.equal(matvec(x[:MOST_ROWS], w[first:]), y[:MOST_ROWS, first:])


@pytest.mark.parametrize(("x_format", "w_format"), FORMATS)
def test_threads_change_no_bit(x_format: torch.dtype, w_format: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    few, w = inputs(5, 1003, 300, x_format, w_format)
    many = torch.randn(600, 300).to(x_format)  # in more than one part
    one = [matvec(x, w) for x in (few, many)]
    monkeypatch.setattr("seqloom.ops.native.matvec.threads", lambda: 3)
    for _ in range(10):
        assert torch.equal(matvec(few, w), one[0])
        assert torch.equal(matvec(many, w), one[1])


def test_any_layout_and_number_of_axes() -> None:
    x, w = inputs(12, 9, 20)
    y = matvec(x, w)
    assert torch.equal(matvec(x.view(2, 3, 2, 20), w), y.view(2, 3, 2, 9))
    assert torch.equal(matvec(x.T.contiguous().T, w.T.contiguous().T), y)
    wide = torch.full((9, 50), torch.nan)
    wide[:, 7:27] = w
    assert torch.equal(matvec(x, wide[:, 7:27]), y)
    assert torch.equal(matvec(x[3], w), y[3])


def test_nothing_gives_nothing() -> None:
    assert matvec(torch.ones(0, 4), torch.ones(3, 4)).shape == (0, 3)
    assert matvec(torch.ones(2, 4), torch.ones(0, 4)).shape == (2, 0)
    assert (matvec(torch.ones(2, 0), torch.ones(3, 0)) == torch.zeros(2, 3)).all()


@pytest.mark.parametrize(("x_format", "w_format"), FORMATS)
def test_only_the_result_is_written(x_format: torch.dtype, w_format: torch.dtype) -> None:
    x, w = inputs(3, 37, 19, x_format, w_format)
    room = torch.full((3 * 37 + 64,), 7.0, dtype=x_format)
    _form(x_format)(pointer(x), matrices(w), pointer(room[32:]), 3, 37, 19, w.stride(0), 1)
    assert (room[:32] == 7).all()
    assert (room[-32:] == 7).all()
    assert torch.equal(room[32:-32].view(3, 37), matvec(x, w))


def test_what_is_not_finite_is_not_hidden() -> None:
    x, w = inputs(2, 8, 21)
    x[0, 20] = torch.nan
    w[3, 20] = torch.inf
    y = matvec(x, w)
    assert y[0].isnan().all()
    assert y[1, 3].isinf()
    assert y[1, :3].isfinite().all()
