"""Muon against torch's own single-matrix Muon, and its forms against each other."""

import pytest
import torch
from torch import nn

from native_checks import guarded
from seqloom.train.muon import Muon


def matrices(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", ["native", "torch"])
@pytest.mark.parametrize("shape", [(12, 12), (24, 8), (8, 24)])
def test_equals_torchs_muon_up_to_its_bf16(shape: tuple[int, int], form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQLOOM_KERNELS", f"orthogonalise={form}")
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


def test_step_in_cpp_equals_the_portable_one_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(5, 7), (3, 40, 16), (2, 2, 16, 24), (131, 63), (1, 9)]

    def steps(form: str, threads: int) -> list[torch.Tensor]:
        monkeypatch.setenv("SEQLOOM_KERNELS", f"orthogonalise={form}")
        monkeypatch.setattr("seqloom.ops.native.orthogonalise.threads", lambda: threads)
        memory = (torch.empty(shape, dtype=torch.float32) for shape in shapes)
        parameters = [nn.Parameter(home.copy_(matrices(*home.shape))) for home in memory]
        optimizer = Muon(parameters, lr=0.1, momentum=0.9)
        for step in range(3):
            for p in parameters[: 5 - step]:
                p.grad = matrices(*p.shape, seed=step + 1).mT.contiguous().mT
            optimizer.step()
        return [p.detach() for p in parameters] + [optimizer.state[p]["momentum"] for p in parameters]

    portable = steps("torch", 1)
    with guarded():
        native = steps("native", 1)
        for threads in (2, 8):
            assert all(map(torch.equal, steps("native", threads), native))
    torch.testing.assert_close(native, portable, rtol=1e-5, atol=1e-5)


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
