from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqloom.ops import causal_conv as module
from seqloom.ops.causal_conv import causal_conv, causal_conv_blocked, causal_conv_reference

DOCUMENTS = torch.tensor([[0] * 2 + [1] * 1 + [2] * 10 + [3] * 18, [0] * 9 + [1] * 2 + [-1] * 20], dtype=torch.int32)


def inputs(B: int = 2, T: int = 31, C: int = 6, K: int = 4, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((B, T, C), (C, K), (C,), (B, K - 1, C))
    return [torch.randn(*shape, dtype=dtype) for shape in shapes]


def torch_conv(x: Tensor, weight: Tensor, bias: Tensor, window: Tensor) -> Tensor:
    """The same by torch's own grouped convolution."""
    full = torch.cat([window, x], 1).transpose(1, 2)
    return F.silu(F.conv1d(full, weight[:, None], bias, groups=len(weight))).transpose(1, 2)


@pytest.fixture(params=["reference", "torch"])
def form(request, monkeypatch):
    """Both implementations, behind the public entry; blocks of two tokens so that borders fall everywhere."""
    monkeypatch.setenv("SEQLOOM_KERNELS", f"causal_conv={request.param}")
    monkeypatch.setattr(module, "_BLOCK", 2 * 2 * 6)


@pytest.mark.parametrize("K", [2, 4, 5])
@pytest.mark.parametrize("T", [1, 3, 31])
@pytest.mark.usefixtures("form")
def test_equals_torch_convolution(same, T, K):
    def one(*leaves):
        return causal_conv(*leaves)[0]

    same(one, torch_conv, *inputs(T=T, K=K), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("form")
def test_no_window_is_a_window_of_zeros():
    x, weight, bias, window = inputs()
    torch.testing.assert_close(causal_conv(x, weight, bias)[0], torch_conv(x, weight, bias, torch.zeros_like(window)))


@pytest.mark.usefixtures("form")
def test_packed_documents_equal_separate_runs():
    x, weight, bias, window = inputs()
    y, after = causal_conv(x, weight, bias, window, DOCUMENTS)
    for row, cuts in enumerate(([0, 2, 3, 13, 31], [0, 9, 11])):
        carried = window[row : row + 1]
        for first, last in pairwise(cuts):
            part = x[row : row + 1, first:last]
            torch.testing.assert_close(y[row : row + 1, first:last], torch_conv(part, weight, bias, carried))
            ended = torch.cat([carried, part], 1)[:, -3:]
            carried = torch.zeros_like(carried)
        torch.testing.assert_close(after[row : row + 1], ended)
    assert (y[1, 11:] == 0).all()


def test_blocked_equals_reference_over_packed_documents(same, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 5 * 2 * 6)
    numbers = torch.cat([DOCUMENTS[:, :1].expand(-1, 3), DOCUMENTS], 1)
    same(causal_conv_blocked, causal_conv_reference, *inputs(), numbers, rtol=1e-12, atol=1e-12)


def test_gradients_match_finite_differences(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 3 * 2)
    numbers = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1, -1]])
    leaves = [value.requires_grad_() for value in inputs(B=1, T=7, C=2)]
    assert torch.autograd.gradcheck(lambda *leaves: causal_conv_blocked(*leaves, numbers), leaves)


def test_no_gradient_crosses_a_document_border():
    x, weight, bias, window = (value.requires_grad_() for value in inputs())
    y, after = causal_conv(x, weight, bias, window, DOCUMENTS)
    dx, dwindow = torch.autograd.grad(y[0, 13:].sum() + after[0].sum(), (x, window))
    assert (dx[0, :13] == 0).all()
    assert (dx[0, 13:] != 0).all()
    assert (dwindow == 0).all()


@pytest.mark.usefixtures("form")
def test_pieces_and_steps_continue_the_convolution():
    x, weight, bias, window = inputs()
    y, after = causal_conv(x, weight, bias, window)
    kept, carried, outputs = window.clone(), window, []
    for first, last in ((0, 2), (2, 20), (20, 30), (30, 31)):
        piece, carried = causal_conv(x[:, first:last], weight, bias, carried)
        outputs.append(piece)
    torch.testing.assert_close(torch.cat(outputs, 1), y)
    assert torch.equal(carried, after)
    assert torch.equal(window, kept)


@pytest.mark.usefixtures("form")
def test_a_ragged_batch_leaves_the_window_of_each_row():
    x, weight, bias, window = inputs(B=3, T=6)
    documents = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, -1, -1, -1, -1], [-1] * 6])
    _, after = causal_conv(x, weight, bias, window, documents)
    for row, length in enumerate((6, 2, 0)):
        assert torch.equal(after[row], torch.cat([window[row], x[row, :length]])[-3:])


def test_gradients_flow_through_the_window(same):
    def two_pieces(x, weight, bias, window):
        first, window = causal_conv(x[:, :5], weight, bias, window)
        second, window = causal_conv(x[:, 5:], weight, bias, window)
        return torch.cat([first, second], 1), window

    same(two_pieces, causal_conv, *inputs(), rtol=1e-12, atol=1e-12)


def test_bf16_accumulates_in_fp32():
    x, weight, bias, window = (value.float() for value in inputs())
    x, window = x.bfloat16().requires_grad_(), window.bfloat16()
    y, after = causal_conv(x, weight, bias, window)
    assert y.dtype == after.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), torch_conv(x.float(), weight, bias, window.float()), rtol=2**-8, atol=1e-6)
    assert torch.autograd.grad(y.float().sum(), x)[0].dtype == torch.bfloat16


def test_accepts_a_slice_of_a_wider_projection(same):
    def strided(wide, weight, bias, window):
        return causal_conv(wide[..., 2:8], weight, bias, window)

    def copied(wide, weight, bias, window):
        return causal_conv(wide[..., 2:8].contiguous(), weight, bias, window)

    _, weight, bias, window = inputs()
    same(strided, copied, torch.randn(2, 31, 11, dtype=torch.float64), weight, bias, window, rtol=0, atol=0)
