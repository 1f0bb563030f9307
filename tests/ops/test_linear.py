"""The linear product in all forms: values and gradients, every pair of formats, and what is kept for the backward."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqloom.ops import linear as room
from seqloom.ops.kernels import invariant
from seqloom.ops.linear import add_product, linear, linear_in_blocks, linear_reference, linear_torch, product

FP32, BF16 = torch.float32, torch.bfloat16
FORMATS = [(FP32, FP32), (FP32, BF16), (BF16, BF16), (BF16, FP32)]
CLOSE = {FP32: {"rtol": 1e-4, "atol": 1e-5}, BF16: {"rtol": 2e-2, "atol": 2e-2}}
SHAPES = [(1, 1, 1), (5, 3, 7), (37, 61, 130), (200, 96, 401)]


def numbers(*shape: int, dtype: torch.dtype = FP32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=["torch", "native"])
def form(request: pytest.FixtureRequest) -> Callable[[Tensor, Tensor], Tensor]:
    if request.param == "torch":
        return linear_torch
    from seqloom.ops.native.build import why_not

    if reason := why_not():
        pytest.skip(reason)
    return linear_in_blocks


@pytest.mark.parametrize(("x_format", "w_format"), FORMATS)
@pytest.mark.parametrize(("rows", "outputs", "inputs"), SHAPES)
def test_values_and_gradients_of_the_reference(same, form, rows, outputs, inputs, x_format, w_format):
    x = numbers(rows, inputs, dtype=x_format) / inputs**0.5
    weight = numbers(outputs, inputs, dtype=w_format, seed=1)
    close = CLOSE[BF16 if BF16 in (x_format, w_format) else FP32]
    atol = close["atol"] * max(rows, outputs) ** 0.5
    same(form, linear_reference, x, weight, rtol=close["rtol"], atol=atol)


def test_axes_before_the_last_and_any_strides(same, form):
    x = numbers(20, 3, 7, 2).permute(3, 2, 1, 0)
    weight = numbers(20, 9).mT
    same(form, F.linear, x, weight, rtol=1e-4, atol=1e-5)
    same(form, F.linear, numbers(20), weight, rtol=1e-4, atol=1e-5)
    same(form, F.linear, numbers(2, 0, 20), weight, rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_one_number_everywhere(form):
    x, weight = numbers(30, 20).requires_grad_(), numbers(40, 20, seed=1).requires_grad_()
    form(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.detach().sum(0).expand(30, 20), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.grad, x.detach().sum(0).expand(40, 20), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("x_format", "w_format"), FORMATS)
def test_a_frozen_weight_is_not_kept_in_a_second_format(form, x_format, w_format):
    x, weight = numbers(20, 16, dtype=x_format).requires_grad_(), numbers(24, 16, dtype=w_format, seed=1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = form(x, weight)
    own = (x.data_ptr(), weight.data_ptr())
    assert all(tensor.data_ptr() in own for tensor in kept)
    y.sum().backward()
    assert x.grad.dtype == x_format
    assert weight.grad is None
    wanted = weight.to(x_format).float().sum(0).expand(20, 16)
    torch.testing.assert_close(x.grad.float(), wanted, **CLOSE[x_format])


@pytest.mark.parametrize("units", [False, True])
def test_bf16_is_summed_in_fp32_and_rounded_once(form, units, monkeypatch):
    monkeypatch.setattr(room, "bf16_units", lambda: units)
    x, weight = numbers(64, 3000, dtype=BF16), numbers(33, 3000, dtype=BF16, seed=1)
    exact = x.double() @ weight.double().mT
    error = (form(x, weight).double() - exact).abs()
    assert (error <= exact.abs() * 2**-8 + 1e-3).all()


def test_second_tensor_kinds_take_the_form_of_torch():
    x, weight = numbers(4, 6).double().requires_grad_(), numbers(5, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(linear, (x, weight))
    rows = torch.vmap(linear, (0, None))(numbers(3, 2, 6), numbers(5, 6))
    torch.testing.assert_close(rows, F.linear(numbers(3, 2, 6), numbers(5, 6)))
    assert linear(torch.empty(2, 6, device="meta"), torch.empty(5, 6, device="meta")).shape == (2, 5)


@pytest.mark.parametrize("name", ["reference", "torch", "native"])
def test_the_public_entry_obeys_the_choice(same, name, monkeypatch):
    if name == "native":
        from seqloom.ops.native.build import why_not

        if reason := why_not():
            pytest.skip(reason)
    monkeypatch.setenv("SEQLOOM_KERNELS", f"linear={name}")
    same(linear, F.linear, numbers(33, 20), numbers(7, 20, seed=1), rtol=1e-4, atol=1e-5)
    x, weight = numbers(3, 20), numbers(7, 20, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["torch", "native"])
@pytest.mark.parametrize(("a_format", "b_format"), FORMATS)
def test_bare_products(name, a_format, b_format, monkeypatch):
    if name == "native":
        from seqloom.ops.native.build import why_not

        if reason := why_not():
            pytest.skip(reason)
    monkeypatch.setenv("SEQLOOM_KERNELS", f"linear={name}")
    a, b = numbers(50, 31, dtype=a_format).mT, numbers(50, 70, dtype=b_format, seed=1)
    close = CLOSE[BF16 if (a_format, b_format) == (BF16, FP32) else FP32]  # torch alone multiplies in the format of a
    exact = a.double() @ b.double()
    y = product(a, b, FP32)
    assert y.dtype == FP32
    units = a_format == BF16 and room.bf16_units()
    torch.testing.assert_close(y.double(), exact, **CLOSE[BF16] if units else close, check_dtype=False)
    total = numbers(31, 70, seed=2)
    before = copy.deepcopy(total)
    add_product(total, a, b)
    torch.testing.assert_close(total.double(), before + exact, **CLOSE[BF16] if units else close, check_dtype=False)


@pytest.mark.parametrize("implementation", ["torch", "native"])
@pytest.mark.parametrize(("x_format", "w_format"), FORMATS)
def test_where_invariance_is_asked_for_no_row_sees_another(implementation, x_format, w_format, monkeypatch):
    monkeypatch.setenv("SEQLOOM_KERNELS", f"linear={implementation}")
    x, weight = numbers(90, 61, dtype=x_format), numbers(130, 61, dtype=w_format, seed=1)
    with invariant():
        y = linear(x, weight)
        for rows in (1, 2, 33, 40):
            assert torch.equal(linear(x[-rows:], weight), y[-rows:])
        assert linear(x[:0], weight).shape == (0, 130)
    torch.testing.assert_close(y, linear_reference(x, weight), **CLOSE[x_format])
