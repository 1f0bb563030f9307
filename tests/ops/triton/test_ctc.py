"""The loss in Triton against torch's own in FP64."""

import pytest
import torch
from torch import Tensor

from seqloom.ops.ctc import ctc_loss_torch
from seqloom.ops.triton.ctc import ctc_loss_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def inputs(T: int = 11, V: int = 7, L: int = 4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A full row; a shorter one with repeats; one that cannot be aligned; one without labels."""
    torch.manual_seed(0)
    targets = torch.randint(1, V, (4, L))
    targets[1:3] = targets[1:3, :1]
    lengths, counts = torch.tensor([T, T - 1, 2, T - 3]), torch.tensor([L, min(3, L), L, 0])
    leaves = [2 * torch.randn(4, T, V, dtype=torch.float32).to(dtype), lengths, targets, counts]
    return [leaf.to(DEVICE) for leaf in leaves]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_torch(near, dtype):
    near(ctc_loss_triton, ctc_loss_torch, *inputs(dtype=dtype), worst=2)


def test_several_blocks_of_symbols_and_many_labels(near):
    near(ctc_loss_triton, ctc_loss_torch, *inputs(T=24, V=2100, L=17), worst=2)


def test_padding_is_never_read_and_impossible_rows_have_no_gradient():
    logits, lengths, targets, counts = inputs()
    wild = logits.clone()
    for row, length in enumerate(lengths.tolist()):
        wild[row, length:] = torch.nan
    found = []
    for leaf in (logits, wild):
        leaf.requires_grad_()
        nats = ctc_loss_triton(leaf, lengths, targets, counts)
        found.append([nats, torch.autograd.grad(nats.sum(), leaf)[0]])
    assert all(map(torch.equal, *found))
    assert found[0][0][2] == 0
    assert (found[0][1][2] == 0).all()
    with torch.no_grad():
        assert torch.equal(ctc_loss_triton(wild, lengths, targets, counts), found[0][0])
