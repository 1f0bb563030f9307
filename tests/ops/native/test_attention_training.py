"""Attention with gradients in C++ against torch's own in FP64: odd sizes, documents, padding, poisoned memory."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from native_checks import assert_near, guarded, results
from seqloom.ops.attention import attention


def torchs_own(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    visible = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    if documents is not None:
        visible = visible & (documents[:, None, :, None] == documents[:, None, None, :])
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
    return y if documents is None else y * (documents >= 0)[:, None, :, None]


@pytest.mark.parametrize(
    ("B", "H", "G", "T", "K"), [(1, 1, 1, 1, 1), (2, 4, 2, 150, 32), (2, 6, 2, 97, 13), (1, 3, 3, 48, 64)]
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_torchs_own_on_any_number_of_threads(B, H, G, T, K, packed, dtype, monkeypatch):
    generator = torch.Generator().manual_seed(T)
    # heads of a token side by side, as projections leave them
    q, k, v = (torch.randn(B, T, N, K, generator=generator).to(dtype).transpose(1, 2) for N in (H, G, G))
    documents = None
    if packed:
        documents = torch.randint(5, (B, T), generator=generator).sort().values
        documents[0, T - T // 3 :] = documents[-1, : T // 2] = -1  # more than a block of padding, behind and in front
    truth = results(torchs_own, q, k, v, documents, dtype=torch.float64)
    monkeypatch.setattr("seqloom.ops.attention.bf16_units", lambda: False)
    with guarded():
        mine = results(attention, q, k, v, documents)
        monkeypatch.setattr("seqloom.ops.native.attention_training.threads", lambda: 3)
        again = results(attention, q, k, v, documents)
    assert_near(mine, truth)
    assert mine[0].dtype == dtype
    assert all(map(torch.equal, mine, again))
