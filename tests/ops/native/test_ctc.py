"""The loss in C++ against torch's own in FP64, over sizes that fit no vector."""

import pytest
import torch
from torch import Tensor

from native_checks import assert_near, guarded, results
from seqloom.ops.ctc import ctc_loss, ctc_loss_torch
from seqloom.ops.native.ctc import ctc_loss_native

SIZES = [  # rows, frames, symbols, labels
    (1, 1, 3, 1), (2, 3, 3, 0), (3, 9, 5, 3), (5, 40, 29, 15), (4, 41, 33, 16), (4, 70, 1031, 17),
]  # fmt: skip


def inputs(B: int = 5, T: int = 40, V: int = 29, L: int = 15, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Rows of all lengths, few symbols so that many repeat, the last row empty; behind a target stands what is none."""
    generator = torch.Generator().manual_seed(B * T)
    lengths = T - torch.arange(B) * (T // (2 * B))
    counts = (L - torch.arange(B)).clamp(min=0)
    counts[-1:] = 0 if B > 1 else L
    targets = torch.randint(1, min(V, 4), (B, L), generator=generator)
    targets[torch.arange(L) >= counts[:, None]] = -7
    return [(2 * torch.randn(B, T, V, generator=generator)).to(dtype), lengths, targets, counts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_torch(sizes, dtype):
    leaves = inputs(*sizes, dtype=dtype)
    with guarded():
        mine = results(ctc_loss_native, *leaves)
    assert [part.dtype for part in mine] == [torch.float32, dtype]
    assert_near(mine, results(ctc_loss_torch, *leaves, dtype=torch.float64))
    with guarded(), torch.no_grad():
        assert torch.equal(ctc_loss_native(*leaves), mine[0])


def test_long_rows_stay_exact():
    leaves = inputs(2, 2000, 29, 50)
    nats, gradient = results(ctc_loss_native, *leaves)
    truth, slope = results(ctc_loss_torch, *leaves, dtype=torch.float64)
    assert float(((nats - truth) / truth).abs().max()) < 1e-6
    assert float((gradient - slope).abs().max() / slope.abs().max()) < 1e-4  # torch's own in FP32: 1e-2


def test_a_confident_network_stays_finite():
    logits, lengths, targets, counts = inputs(2, 60, 7, 5)
    logits *= 300
    assert_near(
        results(ctc_loss_native, logits, lengths, targets, counts),
        results(ctc_loss_torch, logits, lengths, targets, counts, dtype=torch.float64),
    )


def test_rows_that_cannot_be_aligned_cost_nothing():
    logits, *_ = inputs(3, 4, 5, 3)
    leaves = logits, torch.tensor([4, 2, 0]), torch.tensor([[2, 2, 2], [1, 2, 3], [1, 1, 1]]), torch.tensor([3, 3, 0])
    with guarded():
        nats, gradient = results(ctc_loss_native, *leaves)
    assert nats.tolist() == [0, 0, 0]
    assert (gradient == 0).all()


def test_threads_neighbours_and_padding_change_no_bit(monkeypatch):
    logits, lengths, targets, counts = inputs()
    one = results(ctc_loss_native, logits, lengths, targets, counts)
    monkeypatch.setattr("seqloom.ops.native.ctc.threads", lambda: 3)
    wild = logits.clone()
    for row, length in enumerate(lengths.tolist()):
        wild[row, length:] = torch.nan
    for _ in range(3):
        assert all(map(torch.equal, results(ctc_loss_native, wild, lengths, targets, counts), one))
    short = int(lengths[2])
    alone = ctc_loss_native(logits[2:3, :short], lengths[2:3], targets[2:3, : int(counts[2])], counts[2:3])
    assert torch.equal(alone, one[0][2:3])


def test_any_layout():
    logits, *rest = inputs(V=11)
    straight = results(ctc_loss_native, logits, *rest)
    by_frame = logits.transpose(0, 1).contiguous().transpose(0, 1)
    for layout in (by_frame, logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)):
        assert all(map(torch.equal, results(ctc_loss_native, layout, *rest), straight))
    narrow = (rest[0].int(), rest[1].int(), rest[2].int())
    assert all(map(torch.equal, results(ctc_loss_native, logits, *narrow), straight))


def test_what_is_not_finite_stays_so():
    logits, *rest = inputs(2, 9, 20, 3)
    logits[1, 3, 19] = torch.nan
    nats, gradient = results(ctc_loss_native, logits, *rest)
    assert nats.isnan().tolist() == [False, True]
    assert gradient.isnan().flatten(1).any(1).tolist() == [False, True]
    logits, *rest = inputs(1, 9, 20, 3)
    logits[0, :, 1:] = -torch.inf
    assert ctc_loss_native(logits, *rest).tolist() == [torch.inf]


@pytest.mark.parametrize("wrong", [0, -1, 29])
def test_a_target_that_is_no_label_is_refused(wrong):
    logits, lengths, targets, counts = inputs()
    targets[0, 1] = wrong
    with pytest.raises(AssertionError, match="no label"):
        ctc_loss_native(logits, lengths, targets, counts)


def test_the_backward_pass_can_be_repeated_and_is_what_runs_here():
    logits, *rest = inputs()
    nats = ctc_loss(logits.requires_grad_(), *rest)
    assert "NativeCTC" in str(nats.grad_fn)
    first, second = (torch.autograd.grad(nats.sum(), logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
