from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqloom.ops.triton import cross_entropy as module
from seqloom.ops.triton.cross_entropy import linear_cross_entropy_triton


def inputs(S: int = 9, D: int = 5, V: int = 37) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    targets = torch.randint(V, (S,))
    targets[::4] = -100
    return torch.randn(S, D), torch.randn(V, D), targets


def truth(hidden: Tensor, weight: Tensor, targets: Tensor, z_weight: float) -> Tensor:
    logits = hidden @ weight.mT
    normalizer = logits[targets >= 0].logsumexp(-1)
    return F.cross_entropy(logits, targets, reduction="sum") + z_weight * normalizer.square().sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("z_weight", [0.0, 0.1])
def test_equals_torch(near, monkeypatch, dtype, z_weight):
    monkeypatch.setattr(module, "_LOGITS", 4 * 37)
    hidden, weight, targets = inputs()
    kernel = partial(linear_cross_entropy_triton, z_weight=z_weight)
    near(kernel, partial(truth, z_weight=z_weight), hidden.to(dtype), weight, targets)


def test_a_vocabulary_of_several_blocks(near):
    hidden, weight, targets = inputs(S=3, V=5000)
    kernel = partial(linear_cross_entropy_triton, z_weight=0.0)
    near(kernel, partial(truth, z_weight=0.0), 3 * hidden, weight, targets, worst=3)


def test_without_gradients_nothing_but_the_loss_is_computed():
    hidden, weight, targets = inputs()
    total, nats = linear_cross_entropy_triton(hidden, weight, targets, 0.1)
    torch.testing.assert_close(nats, truth(hidden, weight, targets, 0.0))
    torch.testing.assert_close(total, truth(hidden, weight, targets, 0.1))


def test_improbable_targets_stay_finite_and_none_cost_nothing():
    hidden, weight = torch.tensor([[1e4, 0.0]], requires_grad=True), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    loss, _ = linear_cross_entropy_triton(hidden, weight, torch.tensor([1]), 0.0)
    assert loss.item() == pytest.approx(2e4)
    assert torch.isfinite(torch.autograd.grad(loss, hidden)[0]).all()
    loss, _ = linear_cross_entropy_triton(hidden, weight, torch.tensor([-100]), 0.0)
    assert loss == 0
    assert (torch.autograd.grad(loss, hidden)[0] == 0).all()
