from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqloom.ops.attention import attention

DOCUMENTS = torch.tensor([[0] * 3 + [1] * 1 + [2] * 13, [0] * 9 + [-1] * 8], dtype=torch.int32)


def inputs(B: int = 2, T: int = 17, S: int | None = None, H: int = 4, G: int = 2, K: int = 8) -> list[Tensor]:
    torch.manual_seed(0)
    S = T if S is None else S
    return [torch.randn(*shape, dtype=torch.float64) for shape in ((B, H, T, K), (B, G, S, K), (B, G, S, K))]


def torch_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same by torch's own attention with every key-value head repeated."""
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.fixture(params=["reference", "torch"])
def form(request, monkeypatch):
    """Both implementations, behind the public entry."""
    monkeypatch.setenv("SEQLOOM_KERNELS", f"attention={request.param}")


@pytest.mark.parametrize(("T", "G"), [(1, 2), (17, 1), (17, 2), (17, 4), (63, 2)])
@pytest.mark.usefixtures("form")
def test_equals_torch_attention_with_repeated_heads(same, T, G):
    same(attention, torch_causal, *inputs(T=T, G=G), rtol=1e-10, atol=1e-12)


def test_gradients_match_finite_differences():
    documents = torch.tensor([[0, 0, 1, -1]])
    leaves = [value.requires_grad_() for value in inputs(B=1, T=4, H=2, G=1, K=2)]
    assert torch.autograd.gradcheck(lambda *leaves: attention(*leaves, documents), leaves)


@pytest.mark.usefixtures("form")
def test_packed_documents_equal_separate_runs(same):
    def separate(q, k, v):
        rows = []
        for row, cuts in enumerate(([0, 3, 4, 17], [0, 9])):
            spans = [slice(first, last) for first, last in pairwise(cuts)]
            parts = [torch_causal(*(t[row : row + 1, :, span] for t in (q, k, v))) for span in spans]
            rows.append(F.pad(torch.cat(parts, 2), (0, 0, 0, 17 - cuts[-1])))
        return torch.cat(rows)

    same(lambda *leaves: attention(*leaves, DOCUMENTS), separate, *inputs(), rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("form")
def test_padding_gives_zeros_and_finite_gradients():
    leaves = [value.requires_grad_() for value in inputs()]
    documents = DOCUMENTS.clone()
    documents[0] = -1
    y = attention(*leaves, documents)
    assert (y[0] == 0).all()
    assert (y[1, :, 9:] == 0).all()
    gradients = torch.autograd.grad(y.square().sum(), leaves)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert all((gradient[0] == 0).all() for gradient in gradients)


@pytest.mark.parametrize(("T", "spare"), [(1, 0), (4, 0), (1, 2), (4, 2)])
@pytest.mark.parametrize("lengths", [[13, 13], [13, 6], [0, 0]], ids=["even", "ragged", "empty"])
@pytest.mark.usefixtures("form")
def test_earlier_keys_are_seen_and_leftovers_are_not(same, T, spare, lengths):
    def separate(q, k, v):
        rows = [
            torch_causal(q[r : r + 1], k[r : r + 1, :, : n + T], v[r : r + 1, :, : n + T])
            for r, n in enumerate(lengths)
        ]
        return torch.cat(rows)

    q, k, v = inputs(T=T, S=max(lengths) + T + spare)
    for row, length in enumerate(lengths):
        k[row, :, length + T :] = 1e3
        v[row, :, length + T :] = 1e3
    same(lambda *leaves: attention(*leaves, lengths=torch.tensor(lengths)), separate, q, k, v, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("form")
def test_earlier_keys_belong_to_the_first_document():
    q, k, v = inputs(B=1, T=5, S=12)
    documents, lengths = torch.tensor([[4, 4, 5, 5, -1]]), torch.tensor([6])
    y = attention(q, k, v, documents, lengths)
    torch.testing.assert_close(y[:, :, :2], torch_causal(q[:, :, :2], k[:, :, :8], v[:, :, :8]))
    torch.testing.assert_close(y[:, :, 2:4], torch_causal(q[:, :, 2:4], k[:, :, 8:10], v[:, :, 8:10]))
    assert (y[:, :, 4] == 0).all()


@pytest.mark.usefixtures("form")
def test_bf16_stays_bf16():
    narrow = [value.bfloat16() for value in inputs()]
    y = attention(*narrow, DOCUMENTS)
    assert y.dtype == torch.bfloat16
    expected = attention(*(value.double() for value in narrow), DOCUMENTS)
    torch.testing.assert_close(y.double(), expected, rtol=0.05, atol=0.02)
