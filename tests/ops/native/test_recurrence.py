"""Recurrent layers in C++ against their formula in FP64, over sizes that fit no vector and no panel."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from native_checks import assert_near, guarded, results
from seqloom.ops.native.recurrence import gru_native, rnn_native
from seqloom.ops.recurrence import gru, gru_torch, rnn, rnn_torch

SIZES = [(1, 1, 1), (3, 4, 7), (5, 9, 16), (17, 6, 33), (2, 5, 131)]  # rows, steps, width
KINDS: list[tuple[Callable[..., Tensor], Callable[..., Tensor], int]] = [
    (partial(rnn_native, limit=1.5), partial(rnn_torch, limit=1.5), 1),
    (partial(rnn_native, limit=torch.inf), partial(rnn_torch, limit=torch.inf), 1),
    (gru_native, gru_torch, 3),
    (partial(gru_native, candidate="clipped_relu"), partial(gru_torch, candidate="clipped_relu"), 3),
]


def inputs(
    parts: int, B: int = 5, T: int = 9, H: int = 16, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of all lengths in no order, one of them empty if there are several."""
    generator = torch.Generator().manual_seed(B * H)
    lengths = (torch.arange(B) * 7 + T) % (T + 1)
    weight = torch.randn(parts * H, H, generator=generator) / H**0.5
    x, initial = torch.randn(B, T, parts * H, generator=generator), torch.randn(B, H, generator=generator)
    return x.to(dtype), weight.to(dtype), lengths, initial.to(dtype)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_the_formula(sizes, kind, reverse):
    native, formula, parts = kind
    leaves = inputs(parts, *sizes)
    with guarded():
        mine = results(partial(native, reverse=reverse), *leaves)
    assert_near(mine, results(partial(formula, reverse=reverse), *leaves, dtype=torch.float64))
    with guarded(), torch.no_grad():
        assert torch.equal(native(*leaves, reverse=reverse), mine[0])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_no_first_state_is_one_of_zeros(kind, reverse):
    native, _, parts = kind
    x, weight, lengths, initial = inputs(parts)
    with guarded():
        mine = results(partial(native, reverse=reverse), x, weight, lengths, None)
    *zeros, _ = results(partial(native, reverse=reverse), x, weight, lengths, torch.zeros_like(initial))
    assert all(map(torch.equal, mine, zeros))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_threads_neighbours_and_padding_change_no_bit(monkeypatch, kind, reverse):
    native, _, parts = kind
    native = partial(native, reverse=reverse)
    x, weight, lengths, initial = inputs(parts, B=19, T=7, H=37)
    one = results(native, x, weight, lengths, initial)
    monkeypatch.setattr("seqloom.ops.native.recurrence.threads", lambda: 3)
    wild = x.clone()
    for row, length in enumerate(lengths.tolist()):
        wild[row, length:] = torch.nan
    for _ in range(3):
        assert all(map(torch.equal, results(native, wild, weight, lengths, initial), one))
    row = int(lengths.argmax())
    alone = native(x[row : row + 1], weight, lengths[row : row + 1], initial[row : row + 1])
    assert torch.equal(alone, one[0][row : row + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_that_hand_on_their_state_change_no_bit(kind):
    native, _, parts = kind
    x, weight, _, initial = inputs(parts, B=3, T=10)
    whole, state, chunks = native(x, weight, torch.tensor([10] * 3), initial), initial, []
    for chunk in x.split((1, 4, 5), 1):
        chunks.append(native(chunk, weight, torch.tensor([chunk.shape[1]] * 3), state))
        state = chunks[-1][:, -1]
    assert torch.equal(torch.cat(chunks, 1), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_any_layout_and_bf16(kind):
    native, formula, parts = kind
    x, weight, lengths, initial = inputs(parts)
    straight = results(native, x, weight, lengths, initial)
    wide = torch.full((*x.shape[:2], x.shape[2] + 5), torch.nan)
    wide[..., 3:-2] = x
    turned = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for layout in (wide[..., 3:-2], turned):
        assert all(map(torch.equal, results(native, layout, weight.T.contiguous().T, lengths, initial), straight))
    narrow = inputs(parts, dtype=torch.bfloat16)
    mine = results(native, *narrow)
    assert [part.dtype for part in mine] == [torch.bfloat16] * 4
    assert_near(mine, results(formula, *narrow, dtype=torch.float64))


@pytest.mark.parametrize(("kind", "shape"), [(KINDS[0], (0, 5, 3)), (KINDS[2], (2, 0, 3))])
def test_nothing_gives_nothing(kind, shape):
    leaves = inputs(kind[2], *shape)
    mine = results(kind[0], *leaves)
    assert [part.shape for part in mine] == [shape, *(leaves[i].shape for i in (0, 1, 3))]
    assert all((part == 0).all() for part in mine)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stays_so(kind):
    native, _, parts = kind
    x, weight, _, initial = inputs(parts, B=3, T=5)
    x[1, 2, 0] = torch.nan
    y = native(x, weight, torch.tensor([5] * 3), initial)
    assert y.isnan().flatten(2).any(2).tolist() == [[False] * 5, [False, False, True, True, True], [False] * 5]


def test_is_what_runs_here():
    for function, parts in ((rnn, 1), (gru, 3)):
        x, weight, lengths, initial = inputs(parts)
        assert "NativeRecurrence" in str(function(x.requires_grad_(), weight, lengths, initial).grad_fn)
