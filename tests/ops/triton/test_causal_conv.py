from typing import Any

import pytest
import torch
from torch import Tensor

from seqloom.ops.causal_conv import causal_conv_reference
from seqloom.ops.triton import causal_conv as module
from seqloom.ops.triton.causal_conv import causal_conv_triton

DOCUMENTS = torch.tensor([[0] * 2 + [1] * 1 + [2] * 10 + [3] * 10, [0] * 9 + [1] * 2 + [-1] * 12], dtype=torch.int32)


def inputs(B: int = 2, T: int = 23, C: int = 6, K: int = 4) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(*shape) for shape in ((B, T, C), (C, K), (C,), (B, K - 1, C))]


def numbers(taps: int) -> Tensor:
    return torch.cat([DOCUMENTS[:, :1].expand(-1, taps - 1), DOCUMENTS], 1)


@pytest.fixture(autouse=True)
def _two_tiles_a_program(monkeypatch):
    monkeypatch.setattr(module, "_TILES", 2)


@pytest.mark.parametrize("K", [2, 4])
def test_equals_the_reference_over_packed_documents(near, K):
    near(causal_conv_triton, causal_conv_reference, *inputs(K=K), numbers(K))


@pytest.mark.parametrize(("T", "C"), [(1, 3), (33, 17)])
def test_equals_the_reference_for_one_document(near, T, C):
    near(causal_conv_triton, causal_conv_reference, *inputs(B=1, T=T, C=C), None)


def test_bf16_sums_in_fp32(near):
    x, weight, bias, window = inputs()
    near(causal_conv_triton, causal_conv_reference, x.bfloat16(), weight, bias, window.bfloat16(), None)


def test_reads_a_slice_of_a_wider_projection(near):
    def sliced(form: Any) -> Any:
        return lambda wide, weight, bias, window: form(wide[..., 2:8], weight, bias, window, None).sum()

    _, weight, bias, window = inputs(B=1, T=9)
    near(sliced(causal_conv_triton), sliced(causal_conv_reference), torch.randn(1, 9, 11), weight, bias, window)


def test_no_tokens_give_no_output():
    x, weight, bias, window = (value.requires_grad_() for value in inputs(T=0))
    y = causal_conv_triton(x, weight, bias, window, None)
    assert y.shape == x.shape
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(y.sum(), (weight, bias, window)))
