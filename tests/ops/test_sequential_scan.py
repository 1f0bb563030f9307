"""The scan inside `invariant()`: right, and to the last bit the same in whatever company a token comes."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from native_checks import guarded
from seqloom.ops.causal_conv import causal_conv
from seqloom.ops.kernels import invariant
from seqloom.ops.native.build import why_not
from seqloom.ops.ssd import ssd, ssd_reference

SHAPES = {"plain": (2, 50, 4, 8, 2, 16), "odd": (3, 37, 6, 7, 3, 13), "long": (1, 90, 2, 5, 1, 40)}


@pytest.fixture(autouse=True, params=["native", "torch"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "native" and (reason := why_not()):
        pytest.skip(reason)
    monkeypatch.setenv("SEQLOOM_KERNELS", "" if request.param == "native" else "torch")
    with torch.inference_mode():
        yield request.param


def inputs(B: int, T: int, H: int, P: int, G: int, N: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, dt, a, b, c, state, dt_bias, skip."""
    draw = torch.Generator().manual_seed(0)
    normal = [torch.randn(*shape, generator=draw) for shape in ((B, T, H, P), (B, T, H), (B, T, G, N), (B, T, G, N))]
    x, b, c = (normal[i].to(dtype) for i in (0, 2, 3))
    a = -0.1 - 2 * torch.rand(H, generator=draw)
    return [x, normal[1] - 1, a, b, c, torch.randn(B, H, P, N, generator=draw), *torch.randn(2, H, generator=draw)]


def sequential(values: list[Tensor], documents: Tensor | None = None) -> tuple[Tensor, Tensor]:
    *arguments, dt_bias, skip = values
    with invariant():
        return ssd(*arguments, documents, chunk=16, dt_bias=dt_bias, skip=skip)


def part(values: list[Tensor], rows: slice, tokens: slice, state: Tensor) -> list[Tensor]:
    x, dt, a, b, c, _, dt_bias, skip = values
    return [x[rows, tokens], dt[rows, tokens], a, b[rows, tokens], c[rows, tokens], state, dt_bias, skip]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("packed", [False, True])
def test_it_is_the_reference_in_fp64(shape: tuple[int, ...], dtype: torch.dtype, packed: bool) -> None:
    values = inputs(*shape, dtype=dtype)
    documents = None
    if packed:
        documents = torch.arange(shape[1]).expand(shape[0], -1) // 9
        documents = torch.where(documents > shape[1] // 9 - 1, -1, documents)
    x, dt, a, b, c, state, dt_bias, skip = (value.double() for value in values)
    expected, expected_state = ssd_reference(x, F.softplus(dt + dt_bias), a, b, c, state, documents)
    expected = expected + skip[:, None] * x
    y, after = sequential(values, documents)
    if documents is not None:
        y, expected = (torch.where(documents[..., None, None] < 0, 0.0, value) for value in (y, expected))
    torch.testing.assert_close(after.double(), expected_state, rtol=1e-5, atol=1e-5)
    unit = 1e-5 if dtype == torch.float32 else 2**-7 * float(expected.abs().max())
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=unit)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_company_changes_no_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = inputs(*shape, dtype=dtype)
    y, after = sequential(values)
    last = shape[0] - 1
    for cuts in ((0, 1, 2, 19, 35, shape[1]), (0, 16, 17, shape[1])):
        state, parts = values[5][last:], []
        for first, end in pairwise(cuts):
            piece, state = sequential(part(values, slice(last, None), slice(first, end), state))
            parts.append(piece)
        assert torch.equal(torch.cat(parts, 1), y[last:])
        assert torch.equal(state, after[last:])


@pytest.mark.parametrize("form", ["native"], indirect=True)
def test_threads_change_no_bit_and_memory_around_is_left_alone() -> None:
    values = inputs(2, 70, 8, 7, 2, 29)
    with guarded():
        expected = sequential(values)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = sequential(values)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_outside_the_chunked_form_runs() -> None:
    values = inputs(*SHAPES["plain"])
    y, _ = ssd(*values[:6], chunk=16, dt_bias=values[6], skip=values[7])
    alone, _ = sequential(values)
    assert not torch.equal(y, alone)
    torch.testing.assert_close(y, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_company_changes_no_bit_of_the_convolution(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    x, window, weight = (torch.randn(*shape, generator=draw).to(dtype) for shape in ((3, 21, 29), (3, 3, 29), (29, 4)))
    bias = torch.randn(29, generator=draw).to(dtype)
    with invariant():
        y, after = causal_conv(x, weight, bias, window)
        held, parts = window[1:2], []
        for first, end in pairwise((0, 1, 2, 9, 21)):
            piece, held = causal_conv(x[1:2, first:end], weight, bias, held)
            parts.append(piece)
        packed, _ = causal_conv(x, weight, bias, window, torch.arange(21).expand(3, -1) // 8)
        second, _ = causal_conv(x[:, 8:16], weight, bias)
    assert torch.equal(torch.cat(parts, 1), y[1:2])
    assert torch.equal(held, after[1:2])
    assert torch.equal(packed[:, 8:16], second)
