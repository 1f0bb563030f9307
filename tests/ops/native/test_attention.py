"""Attention of generation: the formula, with every row as long as it is, and the same bits in every batch."""

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from seqloom.ops.attention import Shaping, attention, attention_reference
from seqloom.ops.native.attention import FEW_TOKENS, attention_native
from seqloom.ops.native.build import why_not
from seqloom.ops.native.call import FLAG, kernel

FORMATS = [torch.float32, torch.bfloat16]
COUNTS = [1, 2, FEW_TOKENS, FEW_TOKENS + 1, 131]
LENGTHS = [[0, 0, 0], [254, 13, 0], [513, 255, 256]]


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    if reason := why_not():
        pytest.skip(reason)
    poison = kernel("poison_scratch", FLAG)
    poison(1)
    yield
    poison(0)


def inputs(lengths: list[int], T: int, H: int, G: int, K: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Queries, and keys and values in reserved room, where NaN stands for what must not be seen."""
    torch.manual_seed(0)
    room = max(lengths) + T + 5
    q, k, v = torch.randn(len(lengths), T, H, K), *torch.randn(2, len(lengths), G, room, K)
    for row, length in enumerate(lengths):
        k[row, :, length + T :] = v[row, :, length + T :] = torch.nan
    return q.transpose(1, 2).to(dtype), k[:, :, :-3].to(dtype), v[:, :, :-3].to(dtype), torch.tensor(lengths)


def exact(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
    places = lengths[:, None] + torch.arange(q.shape[2])
    visible = torch.arange(k.shape[2]) <= places[:, None, :, None]
    return attention_reference(q.double(), k.double().nan_to_num(), v.double().nan_to_num(), visible, False)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("H", "G", "K"), [(4, 4, 16), (6, 2, 64), (5, 1, 7)])
def test_equals_the_reference(dtype: torch.dtype, H: int, G: int, K: int) -> None:
    for T, lengths in product(COUNTS, LENGTHS):
        q, k, v, before = inputs(lengths, T, H, G, K, dtype)
        y = attention_native(q, k, v, before, K**-0.5)
        assert y.dtype == dtype
        expected = exact(q, k, v, before)
        if dtype == torch.float32:
            torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=2e-6)
        else:
            assert (y.double() - expected).norm() < 2.5e-3 * expected.norm()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("T", COUNTS)
def test_neighbours_and_threads_change_no_bit(dtype: torch.dtype, T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, lengths = inputs([513, 255, 256], T, 6, 2, 32, dtype)
    y = attention_native(q, k, v, lengths, 0.2)
    for row, length in enumerate(lengths.tolist()):
        keys = k[row : row + 1, :, : length + T].contiguous(), v[row : row + 1, :, : length + T].contiguous()
        assert torch.equal(attention_native(q[row : row + 1], *keys, lengths[row : row + 1], 0.2)[0], y[row])
    monkeypatch.setattr("seqloom.ops.native.attention.threads", lambda: 3)
    assert all(torch.equal(attention_native(q, k, v, lengths, 0.2), y) for _ in range(10))


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_few_tokens_at_once_are_the_same_bits_as_one_by_one(dtype: torch.dtype) -> None:
    q, k, v, lengths = inputs([250, 7], 9, 4, 2, 16, dtype)
    together = attention_native(q, k, v, lengths, 0.25)
    for t in range(9):
        alone = attention_native(q[:, :, t : t + 1], k, v, lengths + t, 0.25)
        assert torch.equal(alone, together[:, :, t : t + 1])


def test_large_scores_neither_overflow_nor_vanish() -> None:
    for T in (3, 40):
        q, k, v, lengths = inputs([300], T, 2, 1, 8, torch.float32)
        q, k = q * 100, k * 100
        y = attention_native(q, k, v, lengths, 1.0)
        torch.testing.assert_close(y.double(), exact(q * 8**0.5, k, v, lengths), rtol=1e-3, atol=1e-3)


def test_nothing_gives_nothing() -> None:
    q, k, v, lengths = inputs([3], 2, 2, 1, 8, torch.float32)
    assert attention_native(q[:0], k[:0], v[:0], lengths[:0], 1.0).shape == (0, 2, 2, 8)
    assert attention_native(q[:, :, :0], k, v, lengths, 1.0).shape == (1, 2, 0, 8)


def test_the_op_takes_it_exactly_where_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEQLOOM_KERNELS", raising=False)
    calls = []

    def count(*arguments: object) -> Tensor:
        calls.append(arguments)
        return attention_native(*arguments)

    monkeypatch.setattr("seqloom.ops.native.attention.attention_native", count)
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    served = attention(q, k, v, shaping=Shaping(inverse_temperature=0.5))
    assert len(calls) == 1
    attention(q, k, v, torch.zeros(1, 5, dtype=torch.int64))
    attention(q, k, v, shaping=Shaping(cap=3.0))
    attention(q.double(), k.double(), v.double())
    attention(q.requires_grad_(), k, v).sum().backward()
    assert len(calls) == 1
    with torch.no_grad():
        attention(q, k, v)
        assert len(calls) == 2
        monkeypatch.setenv("SEQLOOM_KERNELS", "torch")
        torch.testing.assert_close(attention(q, k, v, shaping=Shaping(inverse_temperature=0.5)), served)
    assert len(calls) == 2
