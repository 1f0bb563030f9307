import pytest
import torch

from native_checks import assert_near, guarded, results
from seqloom.ops.native.squared_relu import squared_relu_native
from seqloom.ops.squared_relu import squared_relu, squared_relu_reference, squared_relu_torch


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_fast_form_equals_the_formula(same):
    same(squared_relu_torch, squared_relu_reference, numbers(3, 5, 7).double(), rtol=0, atol=0)
    assert torch.autograd.gradcheck(squared_relu_torch, numbers(4, 5).double().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 0), (7, 9, 1031), (1 << 15,)])
def test_native_equals_the_formula_bit_for_bit(shape, dtype):
    x = numbers(*shape).to(dtype)
    with guarded():
        mine = results(squared_relu_native, x)
    assert all(map(torch.equal, mine, results(squared_relu_reference, x)))


def test_native_on_any_layout_and_number_of_threads(monkeypatch):
    x = numbers(300, 401).T
    straight = results(squared_relu_native, x.contiguous())
    monkeypatch.setattr("seqloom.ops.native.squared_relu.threads", lambda: 3)
    assert all(map(torch.equal, results(squared_relu_native, x), straight))


@pytest.mark.parametrize("form", [squared_relu_torch, squared_relu_native])
def test_what_is_not_finite_stays_so(form):
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0])
    y, dx = results(form, x)
    assert_near([y[2:], dx[2:]], [part[2:] for part in results(squared_relu_reference, x)])
    assert [y[0].isnan(), y[1].isinf(), dx[0].isnan(), dx[1].isinf()] == [True] * 4


@pytest.mark.parametrize("form", [squared_relu_torch, squared_relu_native])
def test_keeps_its_input_and_nothing_else(form):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()), lambda kept: kept):
        x = numbers(3, 4).requires_grad_()
        form(x)
    assert kept == [x.data_ptr()]


def test_is_what_runs_here():
    assert "_SquaredRelu" in str(squared_relu(numbers(3, 4).requires_grad_()).grad_fn)
