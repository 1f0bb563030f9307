"""Muon against torch's own single-matrix Muon."""

import pytest
import torch
from torch import nn

from seqloom.train.muon import Muon


def matrices(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(12, 12), (24, 8), (8, 24)])
def test_equals_torchs_muon_up_to_its_bf16(shape: tuple[int, int]) -> None:
    mine, theirs = nn.Parameter(matrices(*shape)), nn.Parameter(matrices(*shape))
    ours = Muon([mine], lr=0.02, momentum=0.9, weight_decay=0.5)
    oracle = torch.optim.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.5)
    start = mine.detach().clone()
    for step in range(6):
        mine.grad = theirs.grad = matrices(*shape, seed=step + 1)
        ours.step()
        oracle.step()
    torch.testing.assert_close(ours.state[mine]["momentum"], oracle.state[theirs]["momentum_buffer"])
    moved, expected = mine - start, theirs - start
    assert (moved - expected).norm() < 0.01 * expected.norm()


def test_a_stack_equals_its_matrices_one_by_one() -> None:
    stack = nn.Parameter(matrices(3, 10, 4))
    singles = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    turned = nn.Parameter(matrices(4, 10))  # shares the batch with the stack, lying on its side
    together = Muon([stack, turned], lr=0.1)
    alone = [Muon([single], lr=0.1) for single in [*singles, nn.Parameter(turned.detach().clone())]]
    stack.grad, turned.grad = matrices(3, 10, 4, seed=1), matrices(4, 10, seed=2)
    together.step()
    for optimizer, gradient in zip(alone, [*stack.grad, turned.grad], strict=True):
        optimizer.param_groups[0]["params"][0].grad = gradient
        optimizer.step()
    torch.testing.assert_close(stack.detach(), torch.stack([single.detach() for single in singles]))
    torch.testing.assert_close(turned, alone[-1].param_groups[0]["params"][0])


def test_tall_matrices_get_the_larger_step() -> None:
    tall, wide = nn.Parameter(torch.zeros(36, 4)), nn.Parameter(torch.zeros(4, 36))
    tall.grad, wide.grad = matrices(36, 4), matrices(36, 4).T.contiguous()
    Muon([tall, wide], lr=1.0, weight_decay=0.0).step()
    torch.testing.assert_close(tall.detach(), 3 * wide.detach().T)


def test_a_parameter_without_gradient_is_left_alone() -> None:
    idle, busy = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    busy.grad = matrices(3, 3)
    Muon([idle, busy], lr=0.1).step()
    assert idle.eq(1).all()
    assert not busy.eq(1).any()
