from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seqloom.ops import cross_entropy as module
from seqloom.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_z


def inputs(S: int = 63, D: int = 5, V: int = 17, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    targets = torch.randint(V, (S,))
    targets[::4] = -100
    return torch.randn(S, D, dtype=dtype), torch.randn(V, D, dtype=dtype), targets


def torch_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.mT, targets, reduction="sum")


@pytest.fixture(params=[4, 1000], ids=["many chunks", "one chunk"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(module, "_TOKENS", request.param)
    monkeypatch.setattr(module, "_LOGITS", 0)


@pytest.mark.usefixtures("chunk")
def test_equals_torch(same):
    same(linear_cross_entropy, torch_loss, *inputs(), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(*inputs()), torch_loss(*inputs()))


@pytest.mark.usefixtures("chunk")
def test_gradients_match_finite_differences():
    hidden, weight, targets = inputs(S=6, D=2, V=3)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    assert torch.autograd.gradcheck(lambda *leaves: linear_cross_entropy(*leaves, targets), leaves)


@pytest.mark.usefixtures("chunk")
def test_z_loss_is_added_and_the_nats_stay_apart(same):
    def torch_z_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        normalizer = (hidden @ weight.mT)[targets >= 0].logsumexp(-1)
        return torch_loss(hidden, weight, targets) + 0.1 * normalizer.square().sum()

    same(lambda *leaves: linear_cross_entropy_z(*leaves, 0.1)[0], torch_z_loss, *inputs(), rtol=1e-11, atol=1e-11)
    hidden, weight, targets = inputs()
    for leaf in (hidden.requires_grad_(), hidden.detach()):
        total, nats = linear_cross_entropy_z(leaf, weight, targets, 0.1)
        torch.testing.assert_close(nats, torch_loss(hidden, weight, targets))
        torch.testing.assert_close(total, torch_z_loss(hidden, weight, targets))
        assert not nats.requires_grad


def test_without_targets_loss_and_gradients_are_zero():
    hidden, weight, targets = inputs()
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(targets, -100))
    assert loss == 0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, (hidden, weight)))


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_side_costs_nothing_and_changes_nothing(frozen):
    *leaves, targets = inputs()
    expected = torch.autograd.grad(torch_loss(*[leaf.requires_grad_() for leaf in leaves], targets), leaves)
    leaves[frozen].requires_grad_(False)
    linear_cross_entropy(*leaves, targets).backward()
    assert leaves[frozen].grad is None
    torch.testing.assert_close(leaves[1 - frozen].grad, expected[1 - frozen])


def test_improbable_targets_stay_finite():
    hidden = torch.tensor([[1e4, 0.0]], requires_grad=True)
    loss = linear_cross_entropy(hidden, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([1]))
    assert loss.item() == pytest.approx(2e4)
    assert torch.isfinite(torch.autograd.grad(loss, hidden)[0]).all()


def test_bf16_hidden_with_an_fp32_weight():
    hidden, weight, targets = inputs(S=200, dtype=torch.float32)
    hidden, weight = hidden.bfloat16().requires_grad_(), weight.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, targets)
    assert loss.dtype == torch.float32
    wide = hidden.detach().float().requires_grad_()
    expected = torch_loss(wide, weight, targets)
    torch.testing.assert_close(loss, expected, rtol=0.01, atol=0.0)
    gradients, truth = torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(expected, (wide, weight))
    for leaf, mine, theirs in zip((hidden, weight), gradients, truth, strict=True):
        assert mine.dtype == leaf.dtype
        torch.testing.assert_close(mine.float(), theirs, rtol=0.1, atol=0.02 * float(theirs.abs().max()))


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel, self.exponentials = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))])
        self.exponentials += "exp" in str(func)
        return result


def test_never_holds_all_logits_and_evaluates_without_gradients(monkeypatch):
    monkeypatch.setattr(module, "_LOGITS", 300 * 8)
    monkeypatch.setattr(module, "_TOKENS", 1)
    hidden, weight, targets = inputs(S=100, D=4, V=300)
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    with Largest() as training:
        linear_cross_entropy(hidden, weight, targets).backward()
    assert training.numel == 300 * 8
    with Largest() as evaluation, torch.no_grad():
        linear_cross_entropy(hidden, weight, targets)
    assert training.exponentials > 0
    assert evaluation.exponentials == 0
