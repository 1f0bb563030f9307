"""Products in blocks: exact to FP32 at every size, nothing written outside, and the same bits in every company."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from seqloom.ops.native import linear as room
from seqloom.ops.native.build import why_not
from seqloom.ops.native.call import FLAG, kernel
from seqloom.ops.native.linear import add_product_native, product_native

FP32, BF16 = torch.float32, torch.bfloat16
FORMATS = [(FP32, FP32), (FP32, BF16), (BF16, FP32), (BF16, BF16)]


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    if reason := why_not():
        pytest.skip(reason)
    poison = kernel("poison_scratch", FLAG)
    poison(1)
    yield
    poison(0)


def operand(lines: int, length: int, transposed: bool, dtype: torch.dtype = FP32) -> Tensor:
    """Numbers in the middle of a field of NaN, row by row or column by column."""
    generator = torch.Generator().manual_seed(lines + 7 * length)
    rows, columns = (length, lines) if transposed else (lines, length)
    field = torch.full((rows + 2, columns + 5), torch.nan, dtype=dtype)
    inside = field[1:-1, 2:-3]
    inside.copy_(torch.randn(rows, columns, generator=generator))
    return inside.mT if transposed else inside


def assert_exact(y: Tensor, a: Tensor, b: Tensor, before: Tensor | float = 0.0) -> None:
    exact = before + a.double() @ b.double()
    size = abs(before) + a.double().abs() @ b.double().abs()  # rounding grows with the terms, not with their sum
    allowed = 1e-6 * size + (exact.abs() * 2**-8 if y.dtype == BF16 else 0)
    assert ((y.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("transposed_b", [False, True])
@pytest.mark.parametrize("transposed_a", [False, True])
@pytest.mark.parametrize("k", [1, 7, 8, 131, 384, 385, 1000])
def test_every_size_and_transpose(k: int, transposed_a: bool, transposed_b: bool) -> None:
    for m in (1, 2, 5, 6, 7, 13, 31, 150):
        for n in (1, 7, 8, 9, 16, 33, 100):
            a, b = operand(m, k, transposed_a), operand(k, n, transposed_b)
            assert_exact(product_native(a, b, FP32), a, b)


@pytest.mark.parametrize("out", [FP32, BF16])
@pytest.mark.parametrize(("a_format", "b_format"), FORMATS)
@pytest.mark.parametrize(("transposed_a", "transposed_b"), [(False, True), (False, False), (True, False), (True, True)])
def test_every_format(
    a_format: torch.dtype, b_format: torch.dtype, out: torch.dtype, transposed_a: bool, transposed_b: bool
) -> None:
    for m, n, k in ((1, 1, 1), (3, 200, 17), (61, 67, 71), (130, 90, 400)):
        a, b = operand(m, k, transposed_a, a_format), operand(k, n, transposed_b, b_format)
        assert_exact(product_native(a, b, out), a, b)


def test_larger_than_every_block() -> None:
    a, b = operand(700, 30, False), operand(30, 4200, True)
    assert_exact(product_native(a, b, FP32), a, b)
    assert_exact(product_native(a, b, BF16), a, b)


def test_strides_of_no_kind() -> None:
    a = torch.randn(20, 3, 50)[:, 1, ::2].expand(20, 25)
    b = torch.randn(1, 40).expand(25, 40)
    assert_exact(product_native(a, b, FP32), a, b)


@pytest.mark.parametrize("accumulate", [False, True])
def test_nothing_outside_is_touched(accumulate: bool) -> None:
    a, b = operand(35, 400, False), operand(400, 43, True)
    field = torch.full((39, 60), 5.0)
    inside = field[2:-2, 10:53]
    inside.fill_(0.5 if accumulate else torch.nan)
    room._multiply(a, b, inside, accumulate=accumulate)
    assert_exact(inside, a, b, before=0.5 if accumulate else 0.0)
    inside.fill_(5.0)
    assert (field == 5.0).all()


def test_nothing_to_sum() -> None:
    a, b = torch.ones(4, 0), torch.ones(0, 3)
    assert (product_native(a, b, FP32) == 0).all()
    total = torch.ones(4, 3)
    add_product_native(total, a, b)
    assert (total == 1).all()
    assert product_native(torch.ones(0, 5), torch.ones(5, 3), BF16).shape == (0, 3)


@pytest.mark.parametrize("transposed_b", [False, True])
@pytest.mark.parametrize("out", [FP32, BF16])
def test_no_row_and_no_column_sees_another(out: torch.dtype, transposed_b: bool) -> None:
    a, b = operand(150, 500, False), operand(500, 210, transposed_b)
    whole = product_native(a, b, out)
    for first, last in ((0, 1), (3, 10), (17, 60), (149, 150)):
        assert torch.equal(product_native(a[first:last], b, out), whole[first:last])
    for first, last in ((0, 1), (5, 21), (16, 209)):
        assert torch.equal(product_native(a, b[:, first:last], out), whole[:, first:last])


@pytest.mark.parametrize("transposed_b", [False, True])
@pytest.mark.parametrize(("a_format", "b_format", "out"), [(FP32, FP32, FP32), (FP32, BF16, BF16), (BF16, BF16, FP32)])
def test_threads_change_no_bit(
    a_format: torch.dtype, b_format: torch.dtype, out: torch.dtype, transposed_b: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = operand(650, 400, not transposed_b, a_format), operand(400, 701, transposed_b, b_format)
    monkeypatch.setattr(room, "threads", lambda: 1)
    one = product_native(a, b, out)
    for count in (2, 3):
        monkeypatch.setattr(room, "threads", lambda count=count: count)
        assert all(torch.equal(product_native(a, b, out), one) for _ in range(3))


def test_numbers_of_no_size_stay_where_they_are() -> None:
    a, b = torch.randn(40, 30), torch.randn(30, 50)
    a[3, 4], a[20, 0], b[7, 9] = torch.inf, torch.nan, -torch.inf
    y, wanted = product_native(a, b, FP32), a @ b
    assert torch.equal(y.isnan(), wanted.isnan())
    assert torch.equal(y.isinf(), wanted.isinf())
