import gc
from functools import partial
from itertools import pairwise

import pytest
import torch
from scipy.signal import lfilter
from torch import Tensor

from seqloom.ops import ssd as module
from seqloom.ops.ssd import slices, ssd, ssd_chunked, ssd_reference, ssd_step

DOCUMENTS = torch.tensor([[0] * 5 + [1] * 1 + [2] * 20 + [3] * 37, [0] * 40 + [1] * 10 + [-1] * 13], dtype=torch.int32)


def inputs(
    B: int = 2, T: int = 63, H: int = 4, P: int = 3, G: int = 2, N: int = 5, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    torch.manual_seed(0)
    x, b, c = (torch.randn(*shape, dtype=dtype) for shape in ((B, T, H, P), (B, T, G, N), (B, T, G, N)))
    dt = torch.nn.functional.softplus(torch.randn(B, T, H, dtype=dtype) - 1)
    a = -0.1 - 2 * torch.rand(H, dtype=dtype)
    return [x, dt, a, b, c, torch.randn(B, H, P, N, dtype=dtype)]


def test_reference_is_a_first_order_filter_where_nothing_is_selective():
    x = torch.randn(1, 50, 1, 1, dtype=torch.float64)
    dt, a = torch.full((1, 50, 1), 0.3, dtype=torch.float64), torch.tensor([-0.7], dtype=torch.float64)
    b, c = torch.full((1, 50, 1, 1), 1.7, dtype=torch.float64), torch.full((1, 50, 1, 1), -0.4, dtype=torch.float64)
    y, _ = ssd_reference(x, dt, a, b, c)
    decay = float(torch.exp(dt[0, 0, 0] * a[0]))
    expected = lfilter([-0.4 * 0.3 * 1.7], [1, -decay], x[0, :, 0, 0].numpy())
    torch.testing.assert_close(y[0, :, 0, 0], torch.from_numpy(expected))


def test_heads_share_groups_in_consecutive_runs():
    x, dt, a, b, c, state = inputs()
    b[:, :, 1] = 0  # the second half of the heads can then only forget
    _, after = ssd_reference(x, dt, a, b, c, state)
    forgotten = torch.exp((dt * a).sum(1))[..., None, None] * state
    torch.testing.assert_close(after[:, 2:], forgotten[:, 2:])
    assert not torch.allclose(after[:, :2], forgotten[:, :2])


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])
@pytest.mark.parametrize("chunk", [1, 5, 16, 63, 128])
def test_chunked_equals_reference(same, chunk, documents):
    one, other = partial(ssd_chunked, documents=documents, chunk=chunk), partial(ssd_reference, documents=documents)
    same(one, other, *inputs(), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("T", "G", "H"), [(1, 1, 3), (3, 4, 4), (32, 1, 2)])
def test_chunked_equals_reference_for_other_shapes(same, T, G, H):
    same(partial(ssd_chunked, chunk=16), ssd_reference, *inputs(T=T, G=G, H=H), rtol=1e-10, atol=1e-11)


def test_starting_from_nothing_is_starting_from_zero():
    *rest, state = inputs()
    for form in (ssd_reference, partial(ssd_chunked, chunk=16)):
        torch.testing.assert_close(form(*rest), form(*rest, torch.zeros_like(state)), rtol=0, atol=0)


def test_gradients_match_finite_differences():
    documents = torch.tensor([[0, 0, 0, 1, -1]])
    leaves = [value.requires_grad_() for value in inputs(B=1, T=5, H=2, P=1, G=1, N=2)]
    assert torch.autograd.gradcheck(lambda *leaves: ssd_chunked(*leaves, documents, chunk=2), leaves)


def test_fp32_stays_close_at_training_size():
    exact = inputs(B=2, T=255, H=8, P=16, G=2, N=16)
    leaves = [value.requires_grad_() for value in exact]
    narrow = [value.detach().float().requires_grad_() for value in exact]
    truth, found = ssd_reference(*leaves), ssd_chunked(*narrow, chunk=64)
    weights = [torch.randn_like(y) for y in truth]
    expected = torch.autograd.grad(truth, leaves, weights)
    gradients = torch.autograd.grad(found, narrow, [weight.float() for weight in weights])
    for mine, theirs in zip([*found, *gradients], [*truth, *expected], strict=True):
        assert (mine - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_gradients_of_the_decay_do_not_drown_in_rounding():
    """Over long rows they are small differences of large sums."""
    leaves = [value.requires_grad_() for value in inputs(B=2, T=1000, H=8, P=16, G=2, N=16)[:5]]
    narrow = [value.detach().float().requires_grad_() for value in leaves]
    weights = torch.randn_like(leaves[0])
    expected = torch.autograd.grad(ssd_chunked(*leaves, chunk=128)[0], leaves, weights)
    gradients = torch.autograd.grad(ssd_chunked(*narrow, chunk=128)[0], narrow, weights.float())
    for mine, exact in zip(gradients, expected, strict=True):
        assert (mine - exact).norm() < 1e-6 * exact.norm()


def test_extreme_steps_neither_overflow_nor_give_nan():
    x, dt, a, b, c, state = (value.float().requires_grad_() for value in inputs())
    huge = (dt * torch.where(torch.arange(63) % 3 == 0, 1e4, 1e-6)[:, None]).detach().requires_grad_()
    y, after = ssd_chunked(x, huge, a, b, c, state, chunk=16)
    expected, _ = ssd_reference(x, huge, a, b, c, state)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    gradients = torch.autograd.grad(y.sum() + after.sum(), (x, huge, a, b, c, state))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_fp32_decays_stay_precise_after_the_state_has_faded_many_times():
    x, dt, a, b, c, state = inputs()
    dt[:, :20] *= 1e3
    expected, _ = ssd_reference(x, dt, a, b, c, state)
    y, _ = ssd_chunked(*(value.float() for value in (x, dt, a, b, c, state)), chunk=63)
    torch.testing.assert_close(y[:, 20:], expected[:, 20:].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [ssd_reference, partial(ssd_chunked, chunk=16)], ids=["reference", "chunked"])
def test_packed_documents_equal_separate_runs(form):
    x, dt, a, b, c, state = inputs()
    y, after = form(x, dt, a, b, c, state, DOCUMENTS)
    for row, cuts in enumerate(([0, 5, 6, 26, 63], [0, 40, 50])):
        carried = state[row : row + 1]
        for first, last in pairwise(cuts):
            span = (slice(row, row + 1), slice(first, last))
            alone, ended = form(x[span], dt[span], a, b[span], c[span], carried)
            torch.testing.assert_close(y[span], alone)
            carried = None
        torch.testing.assert_close(after[row : row + 1], ended)


def test_no_gradient_crosses_a_document_border():
    leaves = [value.float().requires_grad_() for value in inputs()]
    y, after = ssd_chunked(*leaves, DOCUMENTS, chunk=16)
    x, dt, _, b, c, state = leaves
    gradients = torch.autograd.grad(y[0, 26:].sum() + after[0].sum(), (x, dt, b, c, state))
    for gradient in gradients[:-1]:
        assert (gradient[0, :26] == 0).all()
        assert (gradient[0, 26:] != 0).any()
    assert (gradients[-1][0] == 0).all()


def test_what_stands_at_padding_does_not_matter():
    one = inputs()
    other = [value.clone() for value in one]
    for value in (other[0], other[3], other[4]):
        value[1, 50:] = 1e3
    other[1][1, 50:] = 77.0
    for form in (ssd_reference, partial(ssd_chunked, chunk=16)):
        (y, after), (y_other, after_other) = form(*one, DOCUMENTS), form(*other, DOCUMENTS)
        assert torch.equal(after, after_other)
        assert torch.equal(y[1, :50], y_other[1, :50])


def test_prefill_and_steps_continue_the_scan():
    x, dt, a, b, c, state = inputs()
    y, after = ssd_reference(x, dt, a, b, c, state)
    kept = state.clone()
    outputs, carried = [], state
    for first, last in ((0, 20), (20, 61), (61, 62), (62, 63)):
        part = slice(first, last)
        piece, carried = ssd(x[:, part], dt[:, part], a, b[:, part], c[:, part], carried, chunk=16)
        outputs.append(piece)
    torch.testing.assert_close(torch.cat(outputs, 1), y)
    torch.testing.assert_close(carried, after)
    assert torch.equal(state, kept)


def test_step_leaves_the_given_state_alone(same):
    x, dt, a, b, c, state = inputs(T=1)
    kept = state.clone()
    ssd_step(x[:, 0], dt[:, 0], a, b[:, 0], c[:, 0], state)
    assert torch.equal(state, kept)

    def one(x, dt, a, b, c, state):
        y, state = ssd_step(x[:, 0], dt[:, 0], a, b[:, 0], c[:, 0], state)
        return y[:, None], state

    same(one, ssd_reference, x, dt, a, b, c, state, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("T", [1, 63])
def test_bf16_inputs_accumulate_in_fp32(T):
    x, dt, a, b, c, state = (value.float() for value in inputs(T=T))
    x, b, c = (value.bfloat16() for value in (x, b, c))
    y, after = ssd(x, dt, a, b, c, state, chunk=16)
    expected, expected_after = ssd(x.float(), dt, a, b.float(), c.float(), state, chunk=16)
    assert y.dtype == torch.bfloat16
    assert after.dtype == torch.float32
    torch.testing.assert_close(after, expected_after, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y.float(), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("implementation", ["reference", "torch", ""], ids=["reference", "torch", "preferred"])
@pytest.mark.parametrize("T", [1, 63])
def test_every_implementation_makes_step_sizes_and_adds_the_skip(same, monkeypatch, T, implementation):
    x, dt, a, b, c, state = (value.float() for value in inputs(T=T))
    dt_bias, skip = torch.randn(4), torch.randn(4)

    def by_hand(x, dt, a, b, c, state, dt_bias, skip):
        y, state = ssd_reference(x, torch.nn.functional.softplus(dt + dt_bias), a, b, c, state)
        return y + skip[:, None] * x, state

    def fused(*leaves):
        return ssd(*leaves[:6], chunk=16, dt_bias=leaves[6], skip=leaves[7])

    monkeypatch.setenv("SEQLOOM_KERNELS", f"ssd={implementation}" if implementation else "")
    same(fused, by_hand, x, dt - 1, a, b, c, state, dt_bias, skip, rtol=1e-4, atol=1e-5)


def test_slices_are_those_of_split(same):
    x = torch.randn(2, 3, 10)
    same(lambda x: [part.sin() for part in slices(x, (5, 3, 2))], lambda x: [p.sin() for p in x.split((5, 3, 2), -1)],
         x, rtol=0, atol=0)  # fmt: skip


def test_gradients_side_by_side_are_joined_without_a_copy():
    whole = torch.randn(2, 3, 10)
    x = torch.zeros(2, 3, 10, requires_grad=True)
    parts = slices(x, (5, 3, 2))
    assert torch.autograd.grad(parts, x, whole.split((5, 3, 2), -1))[0].data_ptr() == whole.data_ptr()
    first, second, third = whole.split((5, 3, 2), -1)
    for others in (
        (first, third[..., :1].expand(-1, -1, 3), third),
        (first, second, third + 0),
        (first + 0, second, third),
    ):
        gradient = torch.autograd.grad(slices(x, (5, 3, 2)), x, others)[0]
        assert gradient.data_ptr() != whole.data_ptr()
        assert torch.equal(gradient, torch.cat(others, -1))


def test_bf16_gradients_have_the_dtype_of_their_inputs():
    x, dt, a, b, c, state = (value.float() for value in inputs())
    leaves = [x.bfloat16(), dt, a, b.bfloat16(), c.bfloat16(), state]
    wide = [leaf.float().requires_grad_() for leaf in leaves]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    gradients = torch.autograd.grad(ssd_chunked(*leaves, chunk=16)[0].float().sum(), leaves)
    expected = torch.autograd.grad(ssd_chunked(*wide, chunk=16)[0].sum(), wide)
    for leaf, mine, theirs in zip(leaves, gradients, expected, strict=True):
        assert mine.dtype == leaf.dtype
        torch.testing.assert_close(mine.float(), theirs, rtol=2**-7, atol=1e-4)


def test_training_keeps_at_most_one_state_per_chunk():
    leaves = [value.requires_grad_() for value in inputs(T=64, P=8, N=8)]
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda kept: sizes.append(kept.numel()) or kept, lambda kept: kept):
        ssd_chunked(*leaves, chunk=16)
    state = leaves[-1].numel()
    assert max(sizes) <= leaves[0].numel()
    assert sum(sizes) <= sum(leaf.numel() for leaf in leaves[:5]) + 4 * state


def test_inference_keeps_no_states_of_chunks(monkeypatch):
    *rest, state = inputs()
    alive: list[int] = []
    make = module._piece

    def count_and_make(*args):
        alive.append(sum(type(kept) is Tensor and kept.shape == state.shape for kept in gc.get_objects()))
        return make(*args)

    monkeypatch.setattr(module, "_piece", count_and_make)
    ssd_chunked(*rest, state, chunk=8)
    assert max(alive) <= alive[0] + 2
