"""Spatial top-down attention: the basis by its formula, the attention against torch's own."""

import math

import pytest
import torch
from torch.nn import functional as F

from seqloom.nn.glimpse import GlimpseAttention, spatial_basis


def test_the_basis_is_the_papers_and_keeps_rows_and_columns_apart() -> None:
    basis = spatial_basis(27, 20)
    assert basis.shape == (27, 20, 64)
    assert basis.abs().max() <= 1
    rows = [math.cos(math.pi * u * 11 / 27) for u in range(1, 5)] + [
        math.sin(math.pi * u * 11 / 27) for u in range(1, 5)
    ]
    columns = [math.cos(math.pi * u * 3 / 20) for u in range(1, 5)] + [
        math.sin(math.pi * u * 3 / 20) for u in range(1, 5)
    ]
    torch.testing.assert_close(basis[10, 2], torch.outer(torch.tensor(rows), torch.tensor(columns)).flatten())
    assert len(basis.flatten(0, 1).unique(dim=0)) == 27 * 20  # every position has a code of its own


def test_the_other_bases() -> None:
    cosines = [math.cos(math.pi * u * 2 / 6) for u in range(1, 9)]
    torch.testing.assert_close(
        spatial_basis(6, 6, kind="cos")[1, 1], torch.outer(torch.tensor(cosines), torch.tensor(cosines)).flatten()
    )
    assert spatial_basis(6, 5, kind="none").shape == (6, 5, 0)


@pytest.mark.parametrize("scale", [False, True])
def test_answers_are_those_of_torchs_attention(scale: bool) -> None:
    torch.manual_seed(0)
    attention = GlimpseAttention(5, 4, frequencies=2, scale_logits=scale)
    queries, keys, values = torch.randn(3, 2, 24), torch.randn(3, 5, 4, 8), torch.randn(3, 5, 4, 6)
    glimpse = attention(queries, keys, values)
    code = attention.basis.expand(3, -1, -1, -1)
    with_code = [torch.cat([part, code], dim=-1).flatten(1, 2) for part in (keys, values)]
    expected = F.scaled_dot_product_attention(queries, *with_code, scale=None if scale else 1.0)
    torch.testing.assert_close(glimpse.answers, expected)
    torch.testing.assert_close(glimpse.maps.sum((-1, -2)), torch.ones(3, 2))
    logits = (glimpse.logits_what + glimpse.logits_where).flatten(2)
    torch.testing.assert_close(logits.softmax(-1), glimpse.maps.flatten(2))


def test_the_sum_weighs_positions_by_their_logits() -> None:
    torch.manual_seed(0)
    attention = GlimpseAttention(2, 3, basis="none", weighting="sum")
    queries, keys, values = torch.randn(1, 1, 4), torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 5)
    expected = sum((queries[0, 0] @ keys[0, y, x]) * values[0, y, x] for y in range(2) for x in range(3)) / 6
    torch.testing.assert_close(attention(queries, keys, values).answers[0, 0], expected)


def test_a_query_finds_a_content_and_a_place() -> None:
    attention = GlimpseAttention(5, 4)
    keys = torch.zeros(1, 5, 4, 8)
    keys[0, 3, 1, 2] = 1.0
    what, where = torch.zeros(1, 1, 72), torch.zeros(1, 1, 72)
    what[..., 2] = 20.0
    where[..., 8:] = 20.0 * attention.basis[1, 2]
    for query, place in ((what, (3, 1)), (where, (1, 2))):
        weights = attention(query, keys, keys).maps[0, 0]
        assert divmod(int(weights.argmax()), 4) == place
