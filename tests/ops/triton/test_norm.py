from functools import partial

import pytest
import torch
from torch import Tensor

from seqloom.ops.norm import gated_group_norm_reference, rms_norm_reference
from seqloom.ops.triton import norm as module
from seqloom.ops.triton.norm import gated_group_norm_triton, rms_norm_triton

DTYPES = [torch.float32, torch.bfloat16]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(autouse=True)
def _several_rows_a_program(monkeypatch):
    monkeypatch.setattr(module, "_PROGRAMS", 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [((3, 1), 5), ((5,), 37), ((2, 2), 64)])
def test_rms_norm_equals_the_reference(near, rows, width, dtype):
    x, weight = 3 * normal(*rows, width), normal(width)
    near(partial(rms_norm_triton, eps=1e-3), partial(rms_norm_reference, eps=1e-3), x.to(dtype), weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("groups", "width"), [(1, 19), (3, 36)])
def test_gated_norm_equals_the_reference(near, groups, width, dtype):
    kernel = partial(gated_group_norm_triton, groups=groups, eps=1e-5)
    reference = partial(gated_group_norm_reference, groups=groups, eps=1e-5)
    near(kernel, reference, normal(1, 3, width), normal(3, 1, width).mT.reshape(1, 3, width).to(dtype), normal(width))


def test_reads_a_gate_inside_a_wider_projection(near):
    def kernel(y: Tensor, wide: Tensor, weight: Tensor) -> Tensor:
        return gated_group_norm_triton(y, wide[..., 1:9], weight, 2, 1e-5).sum()

    def reference(y: Tensor, wide: Tensor, weight: Tensor) -> Tensor:
        return gated_group_norm_reference(y, wide[..., 1:9], weight, 2, 1e-5).sum()

    near(kernel, reference, normal(2, 2, 8), normal(2, 2, 13), normal(8))


def test_no_rows_are_fine():
    x, weight = normal(0, 8).requires_grad_(), normal(8).requires_grad_()
    assert (torch.autograd.grad(rms_norm_triton(x, weight, 1e-5).sum(), weight)[0] == 0).all()
