import pytest
import torch

from seqloom.ops.paged_attention import Pages, paged_attention_reference
from seqloom.ops.triton import paged_attention as module
from seqloom.ops.triton.paged_attention import paged_attention_triton

PAGES, S = 23, 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "groups", "width", "tokens"), [(6, 2, 24, 1), (4, 4, 16, 3), (8, 1, 32, 4)])
def test_equals_the_reference(monkeypatch, dtype, heads: int, groups: int, width: int, tokens: int) -> None:
    """Rows of lengths around borders of pages, some with fewer pages than runs; what no row owns is NaN."""
    monkeypatch.setattr(module, "_MOST_RUNS", 3)
    generator = torch.Generator().manual_seed(width)
    lengths = torch.tensor([0, S - tokens, S - tokens + 1, 5 * S, 71])
    tables = torch.randperm(PAGES, generator=generator)[: 5 * 4].view(5, 4).int().repeat(1, 2)[:, :6]
    q = torch.randn(5, tokens, heads, width, generator=generator).transpose(1, 2).to(dtype)
    keys = torch.full((PAGES, groups, width, S), torch.nan, dtype=dtype)
    values = keys.mT.contiguous()
    for row, length in enumerate(lengths.tolist()):
        for place in range(length + tokens):
            page = int(tables[row, place // S])
            keys[page, :, :, place % S] = torch.randn(groups, width, generator=generator).to(dtype)
            values[page, :, place % S] = torch.randn(groups, width, generator=generator).to(dtype)
    given = [each.to(DEVICE) for each in (q, keys, values, tables, lengths)]
    assert module.serves(*given[:2])
    y = paged_attention_triton(*given, width**-0.5).cpu()
    truth = paged_attention_reference(q.double(), Pages(keys.double(), values.double()), tables, lengths)
    assert y.dtype == dtype
    assert float((y.double() - truth).norm() / truth.norm()) < TOLERANCE[dtype]
