from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from seqloom.ops.ssd import ssd_reference
from seqloom.ops.triton import ssd as module
from seqloom.ops.triton.ssd import ssd_triton
from seqloom.ops.triton.tiles import precision

DOCUMENTS = torch.tensor([[0] * 3 + [1] * 1 + [2] * 15 + [3] * 4, [0] * 16 + [1] * 2 + [-1] * 5], dtype=torch.int32)


def inputs(B: int = 2, T: int = 23, H: int = 2, P: int = 3, G: int = 1, N: int = 5) -> list[Tensor]:
    torch.manual_seed(0)
    x, b, c = (torch.randn(*shape) for shape in ((B, T, H, P), (B, T, G, N), (B, T, G, N)))
    dt, a = torch.nn.functional.softplus(torch.randn(B, T, H) - 1), -0.1 - 2 * torch.rand(H)
    return [x, dt, a, b, c, torch.randn(B, H, P, N), torch.randn(H)]


def kernel(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Any, skip: Any, documents: Any) -> Any:
    return ssd_triton(x, dt, a, b, c, state, documents, chunk=16, skip=skip)


def reference(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Any, skip: Any, documents: Any) -> Any:
    y, after = ssd_reference(x, dt, a, b, c, state, documents)
    y = y if skip is None else y + skip[:, None] * x
    return (y if documents is None else torch.where((documents < 0)[..., None, None], 0.0, y)), after


def without_padding(*args: Any) -> Any:
    y, after = kernel(*args)
    return torch.where((args[-1] < 0)[..., None, None], 0.0, y), after


@pytest.fixture(params=[1, 256], ids=["whole groups", "divided groups"])
def _programs(request, monkeypatch):
    monkeypatch.setattr(module, "_PROGRAMS", request.param)


@pytest.mark.usefixtures("_programs")
def test_equals_the_reference_over_packed_documents(near):
    near(without_padding, reference, *inputs(), DOCUMENTS)


def test_equals_the_reference_with_several_groups(near):
    near(kernel, reference, *inputs(B=1, T=17, H=4, G=2, P=17, N=1), None)


def test_starts_from_nothing_and_skips_nothing(near):
    near(kernel, reference, *inputs(B=1, T=16)[:5], None, None, None)


def test_bf16_sums_in_fp32(near):
    x, dt, a, b, c, state, skip = inputs(T=20)
    near(kernel, reference, x.bfloat16(), dt, a, b.bfloat16(), c.bfloat16(), state, skip, None)


def test_gradient_of_the_decay_does_not_drown_in_rounding(near):
    x, dt, a, b, c, _, _ = inputs(B=1, T=96, H=1)
    near(kernel, reference, x, dt, a, b, c, None, None, None, worst=0.5)


def test_extreme_steps_neither_overflow_nor_reach_over_borders(near):
    x, dt, a, b, c, state, skip = inputs()
    dt = dt * torch.where(torch.arange(23) % 3 == 0, 1e4, 1e-6)[:, None]
    near(without_padding, reference, x, dt, a, b, c, state, skip, DOCUMENTS, worst=3)


def test_views_and_expanded_gradients_are_read_where_they_lie(near):
    def of_one_projection(joint: Tensor, dt: Tensor, a: Tensor, form: Any) -> Tensor:
        x, b, c = joint.split([2 * 3, 5, 5], dim=-1)
        y, after = form(x.unflatten(-1, (2, 3)), dt, a, b[:, :, None], c[:, :, None], None, None, None)
        return y.sum() + after.mT.sum()

    _, dt, a, *_ = inputs(B=1, T=9)
    joint = torch.randn(1, 9, 16)
    near(partial(of_one_projection, form=kernel), partial(of_one_projection, form=reference), joint, dt, a)


def test_a_token_continues_a_row(near):
    x, dt, a, b, c, state, skip = inputs(T=1, H=4, G=2, P=17)

    @torch.no_grad()
    def step(*args: Any) -> Any:
        return kernel(*args, None)

    y, after = step(x, dt, a, b, c, state, skip)
    expected, state_after = reference(x, dt, a, b, c, state, skip, None)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(after, state_after)


def test_heads_too_wide_for_shared_memory_are_left_to_torch():
    x, b = torch.empty(1, 1, 1, 128), torch.empty(1, 1, 1, 256)
    assert not module.serves(x, b)
    assert module.serves(x.bfloat16(), b)
    assert module.serves(x, b[..., :128])


@pytest.mark.parametrize(("allowed", "products"), [("tf32", "tf32"), ("ieee", "tf32x3")])
def test_products_follow_what_torch_allows_by_its_newer_name(allowed, products):
    setting, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    try:
        setting.fp32_precision = allowed
        assert (precision(torch.float32), precision(torch.bfloat16)) == (products, "ieee")
    finally:
        setting.fp32_precision = before


def test_no_tokens_leave_the_state():
    x, dt, a, b, c, state, _ = inputs(T=0)
    y, after = ssd_triton(x, dt, a, b, c, state, chunk=16)
    assert y.shape == x.shape
    assert torch.equal(after, state)
