"""What is kept of cheap results, and that nothing but memory changes."""

import gc
import weakref

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seqloom.ops import recompute
from seqloom.ops.causal_conv import causal_conv
from seqloom.ops.norm import rms_norm
from seqloom.ops.recompute import cheap, keeping_inputs, recomputing
from seqloom.ops.squared_relu import squared_relu


class Counted(torch.autograd.Function):
    """3 x, which keeps x; counts how often it is made."""

    made = 0

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        Counted.made += 1
        return 3 * x

    @staticmethod
    def backward(ctx, dy):
        return 3 * dy


@pytest.fixture(autouse=True)
def _count(monkeypatch):
    Counted.made = 0
    monkeypatch.setattr(recompute, "SMALL", 0)


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(*shape, requires_grad=True) for shape in shapes]


def layer(x: Tensor, gain: Tensor, up: Tensor, taps: Tensor, down: Tensor) -> Tensor:
    """Every cheap op, and readers of whole results, of views, and of several of them."""
    before = rms_norm(x, gain, 1e-5) @ up.T
    mixed, _ = causal_conv(before, taps, taps[:, 0])
    one, other = mixed.split([3, 5], -1)
    return squared_relu(one.unflatten(-1, (3, 1)) * other[..., None, :]).flatten(-2) @ down.T


def test_bits_are_those_without_it():
    tensors = leaves((2, 7, 6), (6,), (8, 6), (8, 4), (4, 15))
    with recomputing():
        mine = layer(*tensors)
    plain = layer(*tensors)
    dy = torch.randn_like(plain)
    assert torch.equal(mine, plain)
    for one, other in zip(torch.autograd.grad(mine, tensors, dy), torch.autograd.grad(plain, tensors, dy), strict=True):
        assert torch.equal(one, other)


def test_a_result_is_let_go_and_made_once_for_all_its_readers():
    x, weight, other = leaves((5, 4), (3, 4), (3, 2))
    with recomputing():
        y = cheap(Counted.apply, x)
        total = (y @ weight.T).sum() + (y[:, :2] @ other.T).sum() + y.unflatten(-1, (2, 2)).square().sum()
    gone = weakref.ref(y)
    del y
    gc.collect()
    assert gone() is None
    assert Counted.made == 1
    mine = torch.autograd.grad(total, [x, weight, other])
    assert Counted.made == 2
    y = 3 * x
    total = (y @ weight.T).sum() + (y[:, :2] @ other.T).sum() + y.square().sum()
    for one, two in zip(mine, torch.autograd.grad(total, [x, weight, other]), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(("rows", "made"), [(8, 1), (9, 2)])
def test_a_small_result_is_kept(monkeypatch, rows, made):
    x, weight = leaves((rows, 4), (3, 4))
    monkeypatch.setattr(recompute, "SMALL", 8 * 4 * 4)
    with recomputing():
        (cheap(Counted.apply, x) @ weight.T).sum().backward()
    assert Counted.made == made
    torch.testing.assert_close(weight.grad, (3 * x).sum(0).expand(3, 4))


def test_nothing_is_left_after_the_backward_pass():
    (x, weight), made = leaves((5, 4), (3, 4)), []

    def tripled(x: Tensor) -> Tensor:
        y = Counted.apply(x)
        made.append(weakref.ref(y.untyped_storage()))
        return y

    with recomputing():
        (cheap(tripled, x) @ weight.T).sum().backward()
    gc.collect()
    assert len(made) == 2
    assert [storage() for storage in made] == [None, None]


def test_outside_a_result_is_kept_as_ever():
    x, weight = leaves((5, 4), (3, 4))
    (cheap(Counted.apply, x) @ weight.T).sum().backward()
    assert Counted.made == 1


def test_without_gradients_nothing_is_remembered():
    x, weight = leaves((5, 4), (3, 4))
    with torch.no_grad(), recomputing():
        y = cheap(Counted.apply, x)
        assert not hasattr(y, "recipe")
    assert not hasattr(cheap(Counted.apply, x.detach()), "recipe")
    assert weight.grad is None


def test_layers_that_are_recomputed_whole_keep_nothing_else():
    kept: list[weakref.ref] = []

    def inner(x: Tensor, weight: Tensor) -> Tensor:
        before = x * 2
        kept.append(weakref.ref(before))
        return cheap(Counted.apply, before) @ weight.T

    x, weight = leaves((5, 4), (3, 4))
    with recomputing():
        y = checkpoint(inner, x, weight, use_reentrant=False)
    gc.collect()
    assert kept[0]() is None
    mine = torch.autograd.grad(y.sum(), [x, weight])
    for one, other in zip(mine, torch.autograd.grad((6 * x @ weight.T).sum(), [x, weight]), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("spoilt", [0, 1])
def test_a_change_in_place_is_noticed(spoilt):
    x, weight = (leaf.detach().clone().requires_grad_() for leaf in leaves((5, 4), (3, 4)))
    with recomputing():
        inputs = [x * 1, weight * 1]
        total = (cheap(Counted.apply, inputs[0]) @ inputs[1].T).sum()
        with torch.no_grad():
            inputs[spoilt] += 1
    with pytest.raises(AssertionError, match="changed in place"):
        total.backward()


def test_keeping_inputs_keeps_nothing_between():
    def scaled(x: Tensor, factor: float, weight: Tensor) -> Tensor:
        return (x * factor).exp() * weight

    x, weight = (leaf.double().detach().requires_grad_() for leaf in leaves((5, 4), (4,)))
    assert torch.autograd.gradcheck(lambda x, weight: keeping_inputs(scaled, x, 0.5, weight), (x, weight))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda t: t):
        y = keeping_inputs(scaled, x, 0.5, weight.detach())
    assert kept == [x.data_ptr(), weight.data_ptr()]
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(scaled(x, 0.5, weight).sum(), x)[0]
    )
