"""The native scan against the reference in FP64: any size, storage and layout, and nothing but its outputs written."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqloom.ops.native import ssd as module
from seqloom.ops.native.build import why_not
from seqloom.ops.native.ssd import FEW_TOKENS, MOST_HEADS, ssd_native
from seqloom.ops.ssd import slices, ssd_chunked, ssd_reference

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=f"no native library: {why_not()}"),
    pytest.mark.usefixtures("poisoned_scratch"),
]

SHAPES = {  # rows, tokens, heads, head width, groups, state width, and the chunk
    "one": (1, 1, 1, 1, 1, 1, 4),
    "odd": (2, 63, 6, 3, 2, 5, 16),
    "primes": (1, 37, 2, 7, 1, 13, 128),
    "vectors": (2, 130, 4, 16, 4, 32, 64),
    "beyond vectors": (1, 101, 3, 33, 3, 65, 31),
    "many heads": (1, 29, 2 * MOST_HEADS + 1, 9, 1, 17, 8),
    "single tokens": (2, 5, 4, 8, 2, 8, 1),
}


def inputs(B: int, T: int, H: int, P: int, G: int, N: int) -> list[Tensor]:
    """x, dt, a, b, c, the state, and dt_bias and skip."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).float().double()

    a = (-0.1 - 2 * torch.rand(H, generator=generator)).double()
    return [
        normal(B, T, H, P), normal(B, T, H) - 1, a, normal(B, T, G, N), normal(B, T, G, N), normal(B, H, P, N),
        0.3 * normal(H), normal(H),
    ]  # fmt: skip


def packed(rows: int, tokens: int) -> Tensor:
    """Several documents a row, the last row padded."""
    generator = torch.Generator().manual_seed(1)
    documents = (torch.rand(rows, tokens, generator=generator) < 0.1).cumsum(1).int()
    documents[-1, tokens * 4 // 5 :] = -1
    return documents


def reference(x, dt, a, b, c, state, dt_bias, skip, documents=None):
    steps = dt if dt_bias is None else F.softplus(dt + dt_bias)
    y, final = ssd_reference(x, steps, a, b, c, state, documents)
    return (y if skip is None else y + skip[:, None] * x), final


def native(x, dt, a, b, c, state, dt_bias, skip, documents=None, chunk=16):
    return ssd_native(x, dt, a, b, c, state, documents, chunk=chunk, dt_bias=dt_bias, skip=skip)


def with_gradients(form: Callable[..., tuple[Tensor, Tensor]], values: list[Tensor | None]) -> list[Tensor]:
    leaves = [None if value is None else value.clone().requires_grad_() for value in values]
    results = form(*leaves)
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results]
    gradients = torch.autograd.grad(results, [leaf for leaf in leaves if leaf is not None], weights)
    return [*(result.detach() for result in results), *gradients]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(found) == len(expected)
    for place, (mine, exact) in enumerate(zip(found, expected, strict=True)):
        assert (mine - exact).norm() <= tolerance * exact.norm() + 1e-30, place


@pytest.mark.parametrize("documents", [False, True], ids=["one", "packed"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("started", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_match_the_reference(shape, started, fused, documents):
    *sizes, chunk = shape
    exact = inputs(*sizes)
    if not started:
        exact[5] = None
    if not fused:
        exact[1], exact[6], exact[7] = F.softplus(exact[1]), None, None
    numbers = packed(*shape[:2]) if documents else None
    expected = with_gradients(partial(reference, documents=numbers), exact)
    narrow = [None if value is None else value.float() for value in exact]
    found = with_gradients(partial(native, documents=numbers, chunk=chunk), narrow)
    if numbers is not None:  # what comes out at padding means nothing
        found[0], expected[0] = (torch.where(numbers[..., None, None] < 0, 0.0, y) for y in (found[0], expected[0]))
    assert_close(found, expected, 5e-6)


def test_gradients_of_the_decay_do_not_drown_in_rounding():
    """Over long rows they are small differences of large sums."""
    x, dt, a, b, c, *_ = inputs(2, 1000, 8, 16, 2, 16)
    exact = [x, F.softplus(dt), a, b, c]
    expected = with_gradients(lambda *values: ssd_chunked(*values, chunk=128)[:1], exact)
    found = with_gradients(lambda *values: ssd_native(*values, chunk=128)[:1], [value.float() for value in exact])
    assert_close(found, expected, 1e-6)


def test_bf16_is_the_fp32_of_its_numbers_rounded_once():
    x, dt, a, b, c, state, dt_bias, skip = (value.float() for value in inputs(2, 70, 6, 12, 2, 20))
    narrow = [x.bfloat16(), dt, a, b.bfloat16(), c.bfloat16(), state, dt_bias, skip]
    wide = [value.float() for value in narrow]
    found, expected = with_gradients(native, narrow), with_gradients(native, wide)
    for place in (0, 2, 5, 6):  # y, and the gradients of x, b and c
        assert found[place].dtype == torch.bfloat16
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    again = [value.requires_grad_() for value in wide]
    results = native(*again)
    final_weight = torch.randn(state.shape, generator=torch.Generator().manual_seed(3))
    rounded = torch.autograd.grad(results, again, [weight.bfloat16().float(), final_weight])
    leaves = [value.detach().requires_grad_() for value in narrow]
    gradients = torch.autograd.grad(native(*leaves), leaves, [weight.bfloat16(), final_weight])
    assert torch.equal(found[0], expected[0].bfloat16())
    assert torch.equal(found[1], expected[1])
    for mine, theirs in zip(gradients, rounded, strict=True):
        assert torch.equal(mine, theirs.to(mine.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slices_of_wider_tensors_give_the_same_bits(dtype):
    x, dt, a, b, c, state, dt_bias, skip = (value.float() for value in inputs(2, 40, 6, 12, 2, 20))
    x, b, c = (value.to(dtype) for value in (x, b, c))
    joined = torch.cat([x.flatten(2), b.flatten(2), c.flatten(2)], -1).requires_grad_()
    u, v, w = slices(joined, [72, 40, 40])
    wide_dt = torch.cat([dt, dt, dt], -1)[..., 6:12]
    cut = (u.unflatten(-1, (6, 12)), wide_dt, a, v.unflatten(-1, (2, 20)), w.unflatten(-1, (2, 20)), state)
    plain = [x.requires_grad_(), dt, a, b.requires_grad_(), c.requires_grad_(), state]
    ways = torch.randn(2, 6, 40, 12).to(dtype).transpose(1, 2)
    y, expected = native(*cut, dt_bias, skip)[0], native(*plain, dt_bias, skip)[0]
    assert torch.equal(y, expected)
    gradient = torch.autograd.grad(y, joined, ways)[0]
    expected = torch.autograd.grad(expected, (x, b, c), ways.contiguous())
    assert torch.equal(gradient, torch.cat([part.flatten(2) for part in expected], -1))


def test_axes_in_any_order_of_memory():
    values = [value.float() for value in inputs(2, 20, 4, 6, 2, 10)]
    turned = [value.permute(*range(value.dim())[::-1]).contiguous().permute(*range(value.dim())[::-1])
              for value in values]  # fmt: skip
    for mine, theirs in zip(with_gradients(native, turned), with_gradients(native, values), strict=True):
        assert torch.equal(mine, theirs)


def test_gradients_come_side_by_side_in_memory():
    x, dt, a, b, c, *_ = (value.float().requires_grad_() for value in inputs(2, 20, 4, 6, 2, 10))
    gradients = torch.autograd.grad(ssd_native(x, dt, a, b, c, chunk=16)[0].sum(), (x, b, c))
    assert len({gradient.untyped_storage().data_ptr() for gradient in gradients}) == 1
    assert [gradient.storage_offset() for gradient in gradients] == [0, 24, 44]


@pytest.mark.parametrize("wanted", [0, 1], ids=["outputs", "state"])
def test_either_result_may_count_alone(wanted):
    exact = inputs(2, 40, 4, 6, 2, 10)
    leaves, narrow = ([value.to(t).requires_grad_() for value in exact] for t in (torch.float64, torch.float32))
    expected = torch.autograd.grad(reference(*leaves)[wanted].sin().sum(), leaves, materialize_grads=True)
    found = torch.autograd.grad(native(*narrow)[wanted].sin().sum(), narrow, materialize_grads=True)
    assert_close(list(found), list(expected), 5e-6)


def test_nothing_but_the_outputs_is_written_and_all_of_them(monkeypatch):
    values = [value.float() for value in inputs(2, 37, 2 * MOST_HEADS + 2, 7, 2, 13)]
    expected = with_gradients(native, values)
    few = [values[0][:, :3], values[1][:, :3], values[2], values[3][:, :3], values[4][:, :3], *values[5:]]
    expected_step = native(*few)
    guarded: list[tuple[Tensor, Tensor]] = []

    def empty(*shape, dtype=torch.float32):
        inner = torch.Size(shape[0] if isinstance(shape[0], tuple) else shape)
        memory = torch.full((inner.numel() + 128,), torch.nan, dtype=dtype)
        guarded.append((memory, memory[64 : 64 + inner.numel()].view(inner)))
        return guarded[-1][1]

    monkeypatch.setattr(module.torch, "empty", empty)
    found, found_step = with_gradients(native, values), native(*few)
    monkeypatch.undo()
    for mine, theirs in zip([*found, *found_step], [*expected, *expected_step], strict=True):
        assert torch.equal(mine, theirs)
    assert len(guarded) > 10
    for memory, inner in guarded:
        assert memory[:64].isnan().all()
        assert memory[64 + inner.numel() :].isnan().all()
        assert inner.isfinite().all()


def test_threads_and_repetition_change_no_bit(monkeypatch):
    values = [value.float() for value in inputs(3, 50, 4, 24, 2, 24)]
    expected = with_gradients(native, values)
    step = [values[0][:, :1], values[1][:, :1], values[2], values[3][:, :1], values[4][:, :1], *values[5:]]
    expected_step = native(*step)
    monkeypatch.setattr(module, "threads", lambda: 3)
    for _ in range(5):
        for mine, theirs in zip(
            [*with_gradients(native, values), *native(*step)], [*expected, *expected_step], strict=True
        ):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("tokens", [FEW_TOKENS, 50])
def test_no_row_sees_another(tokens):
    x, dt, a, b, c, state, dt_bias, skip = (value.float() for value in inputs(5, tokens, 4, 9, 2, 11))
    y, final = native(x, dt, a, b, c, state, dt_bias, skip)
    for row in range(5):
        part = slice(row, row + 1)
        alone, ended = native(x[part], dt[part], a, b[part], c[part], state[part], dt_bias, skip)
        assert torch.equal(alone, y[part])
        assert torch.equal(ended, final[part])


def test_a_document_is_bit_for_bit_the_same_whatever_was_before_it():
    x, dt, a, b, c, state, dt_bias, skip = (value.float() for value in inputs(1, 48, 4, 9, 2, 11))
    documents = torch.tensor([[0] * 13 + [1] * 26 + [2] * 9])
    y, final = native(x, dt, a, b, c, state, dt_bias, skip, documents)
    before = torch.arange(48)[:, None, None] < 13
    x, dt, b, c = (torch.where(before, 3 * t, t) for t in (x, dt[..., None], b, c))
    y_other, final_other = native(x, dt[..., 0], a, b, c, -state, dt_bias, skip, documents)
    assert torch.equal(y[:, 13:], y_other[:, 13:])
    assert torch.equal(final, final_other)
    assert not torch.equal(y[:, :13], y_other[:, :13])


@pytest.mark.parametrize(("first", "last"), [(16, 41), (13, 20)])
def test_a_packed_document_equals_one_alone(first, last):
    x, dt, a, b, c, state, dt_bias, skip = (value.float() for value in inputs(1, 48, 4, 9, 2, 11))
    documents = torch.zeros(1, 48, dtype=torch.int32)
    documents[:, first:], documents[:, last:] = 1, 2
    at = slice(first, last)
    y, _ = native(x, dt, a, b, c, state, dt_bias, skip, documents)
    alone, _ = native(x[:, at], dt[:, at], a, b[:, at], c[:, at], None, dt_bias, skip)
    torch.testing.assert_close(y[:, at], alone, rtol=1e-5, atol=1e-5)


def test_no_gradient_crosses_a_document_border():
    leaves = [value.float().requires_grad_() for value in inputs(1, 63, 4, 3, 2, 5)]
    documents = torch.tensor([[0] * 26 + [1] * 37])
    y, final = native(*leaves, documents)
    x, dt, _, b, c, state, _, _ = leaves
    *gradients, dstate = torch.autograd.grad(y[0, 26:].sum() + final.sum(), (x, dt, b, c, state))
    for gradient in gradients:
        assert (gradient[0, :26] == 0).all()
        assert (gradient[0, 26:] != 0).any()
    assert (dstate == 0).all()


@pytest.mark.parametrize("tokens", [6, 63])
def test_what_stands_at_padding_does_not_matter(tokens):
    one = [value.float() for value in inputs(2, tokens, 4, 3, 2, 5)]
    documents, end = torch.zeros(2, tokens, dtype=torch.int64), tokens * 2 // 3
    documents[1, end:] = -1
    other = [value.clone() for value in one]
    for value in (other[0], other[1], other[3], other[4]):
        value[1, end:] = 1e3
    (y, final), (y_other, final_other) = native(*one, documents), native(*other, documents)
    assert torch.equal(final, final_other)
    assert torch.equal(y[1, :end], y_other[1, :end])


def test_extreme_steps_neither_overflow_nor_give_nan():
    x, dt, a, b, c, state, _, _ = inputs(2, 63, 4, 3, 2, 5)
    huge = F.softplus(dt) * torch.where(torch.arange(63) % 3 == 0, 1e4, 1e-6)[:, None]
    values = [x, huge, a, b, c, state, None, None]
    found = with_gradients(native, [None if value is None else value.float() for value in values])
    assert_close(found, with_gradients(reference, values), 1e-5)


def test_decays_stay_precise_after_the_state_has_faded_many_times():
    x, dt, a, b, c, state, _, _ = inputs(2, 63, 4, 3, 2, 5)
    dt = F.softplus(dt)
    dt[:, :20] *= 1e3
    expected, _ = ssd_reference(x, dt, a, b, c, state)
    y, _ = ssd_native(*(value.float() for value in (x, dt, a, b, c, state)), chunk=63)
    torch.testing.assert_close(y[:, 20:], expected[:, 20:].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("documents", [False, True], ids=["one", "packed"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (3, 6, 5, 2, 13), (2, 4, 64, 2, 40)])
def test_few_tokens_after_one_another_equal_the_reference(shape, documents, dtype):
    B, H, P, G, N = shape
    for tokens in range(1, FEW_TOKENS + 1):
        exact = inputs(B, tokens, H, P, G, N)
        for place in (0, 3, 4):
            exact[place] = exact[place].to(dtype).double()
        narrow = [value.to(dtype if place in (0, 3, 4) else torch.float32) for place, value in enumerate(exact)]
        numbers = packed(B, tokens) if documents else None
        for state in (exact[5], None):
            exact[5], narrow[5] = state, None if state is None else state.float()
            (y, final), (expected, expected_final) = native(*narrow, numbers), reference(*exact, numbers)
            if numbers is not None:
                y, expected = (torch.where(numbers[..., None, None] < 0, 0.0, value) for value in (y, expected))
            torch.testing.assert_close(final.double(), expected_final, rtol=1e-5, atol=1e-5)
            rounding = 1e-5 if dtype == torch.float32 else 2**-8
            torch.testing.assert_close(y.double(), expected, rtol=rounding, atol=1e-5)


def test_the_given_state_is_left_alone():
    for tokens in (1, FEW_TOKENS + 1):
        values = [value.float() for value in inputs(2, tokens, 4, 3, 2, 5)]
        kept = values[5].clone()
        native(*values)
        assert torch.equal(values[5], kept)


def test_pieces_of_a_row_continue_it():
    x, dt, a, b, c, state, dt_bias, skip = (value.float() for value in inputs(2, 63, 4, 3, 2, 5))
    y, final = native(x, dt, a, b, c, state, dt_bias, skip)
    parts = []
    for first, last in pairwise((0, 20, 58, 62, 63)):
        at = slice(first, last)
        part, state = native(x[:, at], dt[:, at], a, b[:, at], c[:, at], state, dt_bias, skip)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "tokens"), [(0, 9), (2, 0)])
def test_nothing_gives_nothing(rows, tokens):
    values = [value.float() for value in inputs(rows, tokens, 4, 3, 2, 5)]
    y, final, *gradients = with_gradients(native, values)
    assert y.shape == (rows, tokens, 4, 3)
    assert torch.equal(final, values[5])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert torch.equal(native(*values)[1], values[5])


def test_training_keeps_the_inputs_and_the_states_between_pieces():
    leaves = [value.float().requires_grad_() for value in inputs(2, 64, 4, 8, 2, 8)]
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda kept: sizes.append(kept.numel()) or kept, lambda kept: kept):
        native(*leaves)
    assert sum(sizes) == sum(leaf.numel() for leaf in leaves) + 3 * leaves[5].numel()
