"""Attention over pages: the formula, the same bits in every batch, piece and place, and FP8 codes as defined."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from native_checks import guarded
from seqloom.numerics.elements import E4M3, decode, encode, round_nearest
from seqloom.ops.attention import PLAIN, Shaping, attention_reference
from seqloom.ops.kernels import invariant
from seqloom.ops.native.build import why_not
from seqloom.ops.native.call import FLAG, kernel
from seqloom.ops.paged_attention import Pages, paged_append, paged_attention, paged_attention_reference

STORED = ["fp32", "bf16", "fp32 as fp8", "bf16 as fp8"]
SHAPES = [(4, 4, 16, 64), (6, 2, 64, 16), (5, 1, 7, 256), (8, 2, 72, 32)]  # H G K page_tokens


@pytest.fixture
def native() -> Iterator[None]:
    if reason := why_not():
        pytest.skip(reason)
    poison = kernel("poison_scratch", FLAG)
    poison(1)
    yield
    poison(0)


class Case(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    pages: Pages
    tables: Tensor
    lengths: Tensor

    def attend(self, first: int = 0, last: int | None = None, shaping: Shaping = PLAIN) -> Tensor:
        return paged_attention(self.q[:, :, first:last], self.pages, self.tables, self.lengths + first, shaping)

    def row(self, index: int) -> "Case":
        one = slice(index, index + 1)
        return Case(self.q[one], self.k[one], self.v[one], self.pages, self.tables[one], self.lengths[one])


def empty_pages(count: int, G: int, K: int, page_tokens: int, stored: str) -> Pages:
    """Pages full of NaN."""
    shapes = (count, G, K, page_tokens), (count, G, page_tokens, K)
    if stored.endswith("fp8"):
        return Pages(*(torch.full(shape, 0x7F, dtype=torch.uint8) for shape in shapes), k_scale=0.02, v_scale=0.03)
    dtype = torch.float32 if stored == "fp32" else torch.bfloat16
    return Pages(*(torch.full(shape, torch.nan, dtype=dtype) for shape in shapes))


def make(
    lengths: list[int], T: int, shape: tuple[int, int, int, int] = SHAPES[1], stored: str = "fp32", seed: int = 0
) -> Case:
    """Rows of these lengths and T more tokens, in pages that lie anyhow; `seed` is that of their places alone."""
    H, G, K, page_tokens = shape
    dtype = torch.bfloat16 if stored.startswith("bf16") else torch.float32
    torch.manual_seed(0)
    room = max(lengths) + T
    q, k, v = (torch.randn(len(lengths), heads, t, K).to(dtype) for heads, t in ((H, T), (G, room), (G, room)))
    columns = -(-room // page_tokens) + 1
    count = len(lengths) * columns
    torch.manual_seed(seed)
    case = Case(
        q, k, v, empty_pages(count + 2, G, K, page_tokens, stored),
        torch.randperm(count).view(len(lengths), columns).int(), torch.tensor(lengths),
    )  # fmt: skip
    for row, length in enumerate(lengths):
        one, tokens = case.row(row), slice(0, length + T)
        paged_append(one.k[:, :, tokens], one.v[:, :, tokens], one.pages, one.tables, torch.tensor([0]))
    return case


def exact(case: Case, shaping: Shaping = PLAIN) -> Tensor:
    places = case.lengths[:, None] + torch.arange(case.q.shape[2])
    visible = torch.arange(case.k.shape[2]) <= places[:, None, :, None]
    return attention_reference(case.q.double(), case.k.double(), case.v.double(), visible, False, shaping)


def assert_close(y: Tensor, expected: Tensor) -> None:
    assert y.shape == expected.shape
    if y.dtype == torch.float32:
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=2e-6)
    else:
        assert (y.double() - expected).norm() < 2.5e-3 * expected.norm()


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("native")
def test_equals_attention_over_keys_in_a_row(shape: tuple[int, int, int, int], stored: str) -> None:
    coded = stored.endswith("fp8")
    for T in (1, 17) if coded else (1, 3, 17, 70):
        case = make([300, 255, 0], T, shape, stored)
        y = case.attend()
        if coded:
            assert (y.double() - exact(case)).norm() < 0.05 * exact(case).norm()
            wide = case._replace(q=case.q.double())
            assert_close(y, paged_attention_reference(*wide[:1], *wide[3:]))
        else:
            assert_close(y, exact(case))


@pytest.mark.parametrize("form", ["native", "torch", "reference"])
def test_equals_torch_attention(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "native" and (reason := why_not()):
        pytest.skip(reason)
    monkeypatch.setenv("SEQLOOM_KERNELS", f"paged_attention={form}")
    case = make([37, 0, 300], 5)
    y = case.attend()
    for row, length in enumerate(case.lengths.tolist()):
        k, v = (part[row, :, : length + 5].repeat_interleave(3, 0) for part in (case.k, case.v))
        visible = torch.ones(5, length + 5, dtype=torch.bool).tril(length)
        torch.testing.assert_close(y[row], F.scaled_dot_product_attention(case.q[row], k, v, attn_mask=visible))


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.usefixtures("native")
def test_no_cut_neighbour_place_or_thread_changes_a_bit(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    T = 300
    case = make([513, 255, 0], T, stored=stored)
    y = case.attend()
    for size in (1, 4, 7, 64):  # of pieces; from both sides of every border of a block, and of the call
        for first in range(0, T, size) if size > 7 else (0, 1, 248, 251, 254, 256, 293):
            assert torch.equal(case.attend(first, first + size), y[:, :, first : first + size]), (size, first)
    for row in range(3):
        assert torch.equal(case.row(row).attend()[0], y[row])
        assert torch.equal(case.row(row).attend(290, 293)[0], y[row, :, 290:293])
    assert torch.equal(make([513, 255, 0], T, stored=stored, seed=1).attend(), y)
    monkeypatch.setattr("seqloom.ops.native.paged_attention.threads", lambda: 2)
    for first, last in ((0, T), (5, 6), (251, 255)):
        assert all(torch.equal(case.attend(first, last), y[:, :, first:last]) for _ in range(3))


@pytest.mark.parametrize("stored", ["fp32", "bf16 as fp8"])
def test_the_portable_form_is_invariant_where_that_is_asked_for(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQLOOM_KERNELS", "torch")
    with invariant():
        case = make([60, 3], 9, stored=stored)
        y = case.attend()
        for first, last in ((0, 1), (3, 5), (2, 9)):
            assert torch.equal(case.attend(first, last), y[:, :, first:last])
        assert torch.equal(case.row(1).attend()[0], y[1])
        assert torch.equal(make([60, 3], 9, stored=stored, seed=1).attend(), y)


@pytest.mark.parametrize("form", ["native", "torch", "reference"])
@pytest.mark.parametrize("shaping", [Shaping(inverse_temperature=0.5), Shaping(cap=2.0), Shaping(clip=(-0.01, 1.01))])
def test_shapes_scores_and_probabilities(form: str, shaping: Shaping, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "native" and (reason := why_not()):
        pytest.skip(reason)
    monkeypatch.setenv("SEQLOOM_KERNELS", f"paged_attention={form}")
    case = make([37, 0], 3)
    assert_close(case.attend(shaping=shaping), exact(case, shaping))


@pytest.mark.parametrize("form", ["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_codes_are_those_of_the_format(form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "native" and (reason := why_not()):
        pytest.skip(reason)
    monkeypatch.setenv("SEQLOOM_KERNELS", f"paged_attention={form}")
    pages = empty_pages(1, 1, 499, 16, "fp8")._replace(k_scale=0.25, v_scale=3.0)
    torch.manual_seed(0)
    values = decode(torch.arange(256, dtype=torch.uint8), E4M3)
    k = torch.cat(
        (values, torch.randn(200) * 2 ** torch.randn(200), torch.tensor([1e9, -1e9, 0.0]), values[8:48] * 1.06)
    )
    k = k.to(dtype).view(1, 1, 1, 499)
    paged_append(k, 2 * k, pages, torch.zeros(1, 1, dtype=torch.int32), torch.tensor([5]))
    for codes, x in ((pages.keys[0, 0, :, 5], k.float() / 0.25), (pages.values[0, 0, 5], (2 * k).float() / 3.0)):
        expected = encode(round_nearest(x.flatten(), E4M3), E4M3)
        numbers = ~x.flatten().isnan()
        assert torch.equal(codes[numbers], expected[numbers])
        assert (codes[~numbers] & 0x7F == 0x7F).all()
        assert 1 <= int((~numbers).sum()) <= 4


@pytest.mark.usefixtures("native")
def test_codes_are_read_as_the_format_has_them() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    pages = empty_pages(1, 1, 256, 16, "fp8")._replace(v_scale=0.5)
    pages.keys.zero_()
    pages.values[0, 0, 0] = every
    for heads in (1, 2, 3, 20):  # a query that sees one key has its value
        y = paged_attention(
            torch.zeros(1, heads, 1, 256), pages, torch.zeros(1, 1, dtype=torch.int32), torch.tensor([0])
        )
        assert all(torch.equal(one.nan_to_num(7), decode(every, E4M3).nan_to_num(14) * 0.5) for one in y[0, :, 0])


@pytest.mark.usefixtures("native")
def test_rows_share_pages_and_stale_tables_mean_nothing() -> None:
    case = make([100, 100], 4)
    shared = case.tables.clone()
    shared[1, :6] = shared[0, :6]  # 96 tokens
    same_keys = case._replace(k=case.k.clone(), v=case.v.clone(), tables=shared)
    same_keys.k[1, :, :96], same_keys.v[1, :, :96] = case.k[0, :, :96], case.v[0, :, :96]
    assert_close(same_keys.attend(), exact(same_keys))
    stale = shared.clone()
    stale[:, 7:] = 2**31 - 1
    assert torch.equal(same_keys._replace(tables=stale).attend(), same_keys.attend())


@pytest.mark.parametrize("T", [1, 40])
def test_writes_where_it_may(T: int) -> None:
    case = make([30], T)
    before = [part.clone() for part in case.pages[:2]]
    with guarded():
        y = case.attend()
    assert y.isfinite().all()
    fresh, used = empty_pages(len(case.pages.keys), 2, 64, 16, "fp32"), case.tables[0, : -(-(30 + T) // 16)].long()
    for part, was, untouched in zip(case.pages[:2], before, fresh[:2], strict=True):
        assert torch.equal(part.nan_to_num(9), was.nan_to_num(9))
        others = [page for page in range(len(part)) if page not in used]
        assert torch.equal(part[others].isnan(), untouched[others].isnan())


@pytest.mark.usefixtures("native")
def test_no_rows_and_no_tokens() -> None:
    case = make([3], 2)
    assert case.attend(0, 0).shape == (1, 6, 0, 64)
    nobody = Case(case.q[:0], case.k[:0], case.v[:0], case.pages, case.tables[:0], case.lengths[:0])
    assert nobody.attend().shape == (0, 6, 2, 64)
    paged_append(nobody.k, nobody.v, nobody.pages, nobody.tables, nobody.lengths)
