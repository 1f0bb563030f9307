"""Softmax, loss and gradient in C++ against their formula in FP64, over rows that fit no vector."""

import pytest
import torch
from torch import Tensor

from native_checks import assert_near, guarded
from seqloom.ops import cross_entropy as module
from seqloom.ops.cross_entropy import linear_cross_entropy_reference, linear_cross_entropy_z
from seqloom.ops.native.cross_entropy import softmax_native

FP32, BF16 = torch.float32, torch.bfloat16
SHAPES = [(1, 1), (3, 2), (5, 8), (7, 33), (4, 1031), (130, 64)]


def rows(S: int, V: int, dtype: torch.dtype = FP32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(S * V)
    return 3 * torch.randn(S, V, generator=generator).to(dtype), torch.randint(V, (S,), generator=generator)


def formula(logits: Tensor, targets: Tensor, z_weight: float) -> list[Tensor]:
    logits = logits.double().requires_grad_()
    normalizer = logits.logsumexp(-1)
    nats = (normalizer - logits.gather(1, targets[:, None])[:, 0]).sum()
    penalty = z_weight * normalizer.square().sum()
    return [nats.detach(), penalty.detach(), torch.autograd.grad(nats + penalty, logits)[0]]


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("z_weight", [0.0, 0.1])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_formula(shape, z_weight, dtype):
    logits, targets = rows(*shape, dtype)
    truth = formula(logits, targets, z_weight)
    with guarded():
        place = torch.empty(shape, dtype=dtype).copy_(logits)
        *sums, gradient = softmax_native(place, targets, z_weight, True)
    assert gradient is place
    assert gradient.dtype == dtype
    assert_near([*sums, gradient], truth)
    with guarded():
        place = torch.empty(shape, dtype=dtype).copy_(logits)
        *again, nothing = softmax_native(place, targets, z_weight, False)
    assert nothing is None
    assert torch.equal(place, logits)
    assert all(map(torch.equal, again, sums))


def test_threads_and_other_rows_change_no_bit(monkeypatch):
    logits, targets = rows(50, 333)
    one = softmax_native(logits.clone(), targets, 0.1, True)
    monkeypatch.setattr("seqloom.ops.native.cross_entropy.threads", lambda: 3)
    for _ in range(5):
        assert all(map(torch.equal, softmax_native(logits.clone(), targets, 0.1, True), one))
    alone = softmax_native(logits[7:8].clone(), targets[7:8], 0.1, True)
    assert torch.equal(alone[2], one[2][7:8])


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_far_apart_logits_and_their_signs(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [0.0, float("-inf"), 1.0]], dtype=dtype)
    targets = torch.tensor([1, 2, 0])
    *truth, expected = formula(logits, targets, 0.0)
    *sums, gradient = softmax_native(logits, targets, 0.0, True)
    assert_near([*sums, gradient], [*truth, expected])


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(dtype, value):
    logits, targets = rows(3, 40, dtype)
    logits[1, 37] = value
    nats, _, gradient = softmax_native(logits, targets, 0.0, True)
    assert nats.isnan()
    assert gradient is not None
    assert gradient.isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("wrong", [-1, 8])
def test_a_target_outside_the_vocabulary_is_refused(wrong):
    logits, targets = rows(5, 8)
    targets[2] = wrong
    with pytest.raises(AssertionError, match="no token of the vocabulary"):
        softmax_native(logits, targets, 0.0, True)


@pytest.mark.parametrize("frozen", [None, 0, 1])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_the_loss_of_a_head_equals_the_formula(dtype, frozen, monkeypatch):
    monkeypatch.setattr(module, "_TOKENS", 11)
    monkeypatch.setattr(module, "_LOGITS", 0)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(60, 24, generator=generator).to(dtype)
    weight = 0.3 * torch.randn(50, 24, generator=generator)
    targets = torch.randint(50, (60,), generator=generator)
    targets[::4] = -100
    found = []
    for form, width in ((linear_cross_entropy_z, None), (linear_cross_entropy_reference, torch.float64)):
        leaves = [leaf.to(width or leaf.dtype, copy=True) for leaf in (hidden, weight)]
        for place, leaf in enumerate(leaves):
            leaf.requires_grad_(place != frozen)
        total, nats = form(*leaves, targets, 0.01)
        assert not nats.requires_grad
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found.append([total.detach(), nats, *torch.autograd.grad(total, wanted)])
    if dtype == FP32:
        assert_near(*found)
    else:
        for mine, truth in zip(*found, strict=True):
            assert float((mine - truth).abs().max() / truth.abs().max()) < 0.02


def test_is_what_runs_here(monkeypatch):
    called = []
    monkeypatch.setattr("seqloom.ops.native.cross_entropy.kernel", lambda name, *_: lambda *_: called.append(name))
    logits, targets = rows(5, 8)
    linear_cross_entropy_z(logits, torch.randn(3, 8), targets % 3, 0.0)
    assert called == ["cross_entropy_f32"]
