"""Keys and values in pages: what attention layers remember in an engine, against what they remember by themselves."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from seqloom.core.errors import ConfigError
from seqloom.nn import layer as layer_module
from seqloom.nn.layer import Layer
from seqloom.nn.paged_kv import PagedKV, PageTables
from seqloom.nn.state_formats import KVFormat, StateFormats
from seqloom.nn.step import few_tokens
from seqloom.numerics.precision import PrecisionConfig, apply_precision
from seqloom.ops.kernels import invariant
from seqloom.ops.native.build import why_not
from seqloom.systems.hybrid_lm.model import make_layer
from tiny_models import VARIANTS, excite

WIDTH, PAGES, PAGE_TOKENS = 64, 40, 16
FORMATS: list[KVFormat] = ["model", "fp8"]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode(), invariant():
        yield


def layer_of(format: str = "fp32") -> Layer:
    torch.manual_seed(0)
    layer = excite(make_layer("*", VARIANTS["dense"])).eval()
    apply_precision(layer, PrecisionConfig(activations=format))
    return layer


def store_of(layer: Layer, format: KVFormat = "model", dtype: torch.dtype = torch.float32) -> PagedKV:
    """Pages full of NaN."""
    store = layer.mixer.new_store(PAGES, PAGE_TOKENS, dtype, StateFormats(keys_values=format))
    for part in store.rows(0, 0, tables_of([])).stored[:2]:
        part.fill_(torch.nan if part.is_floating_point() else 0x7F)
    return store


def tables_of(lengths: list[int], first_page: int = 0) -> PageTables:
    """Six pages a row."""
    pages = (torch.arange(6 * len(lengths)) * 7 + first_page) % PAGES
    return PageTables(pages.view(-1, 6).int(), torch.tensor(lengths, dtype=torch.int64))


def inputs(rows: int, tokens: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(rows, tokens, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(layer: Layer, store: PagedKV, x: Tensor, pieces: list[int], tables: PageTables) -> Tensor:
    """The layer's outputs for rows that are told piece by piece."""
    parts, at = [], 0
    for tokens in pieces:
        view = store.rows(0, len(x), PageTables(tables.pages, tables.lengths + at))
        parts.append(layer(x[:, at : at + tokens].contiguous(), None, view)[0])
        at += tokens
    return torch.cat(parts, 1)


@pytest.mark.parametrize("form", ["native", "torch"])
@pytest.mark.parametrize("format", FORMATS)
def test_answers_as_a_layer_with_a_state_of_its_own(
    format: KVFormat, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "native" and (reason := why_not()):
        pytest.skip(reason)
    monkeypatch.setenv("SEQLOOM_KERNELS", form)
    layer, x = layer_of(), inputs(3, 40)
    state = layer.new_state(3, torch.float32, StateFormats(keys_values=format))
    expected = torch.cat(
        [layer(x[:, :12], None, state)[0], *(layer(x[:, t : t + 1], None, state)[0] for t in range(12, 40))], 1
    )
    y = run(layer, store_of(layer, format), x, [12, *[1] * 28], tables_of([0, 0, 0]))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_the_short_way_has_the_bits_of_the_modules(
    format: KVFormat, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    layer, x = layer_of("fp32" if dtype == torch.float32 else "bf16"), inputs(3, 40, dtype)
    layer.mixer.k_scale, layer.mixer.v_scale = 0.04, 0.3
    pieces, tables, taken = [9, 1, 8, 3, 1, 1, 8, 8, 1], tables_of([0, 0, 0]), []

    def look(*arguments: object) -> Tensor | None:
        y = few_tokens(*arguments)
        taken.append(y is not None)
        return y

    monkeypatch.setattr(layer_module, "few_tokens", look)
    y = run(layer, store_of(layer, format, dtype), x, pieces, tables)
    assert taken == [tokens <= 8 for tokens in pieces]
    monkeypatch.setattr(layer_module, "few_tokens", lambda *_: None)
    assert torch.equal(run(layer, store_of(layer, format, dtype), x, pieces, tables), y)


@pytest.mark.parametrize("form", ["native", "torch"])
@pytest.mark.parametrize("format", FORMATS)
def test_pieces_neighbours_and_places_change_no_bit(
    format: KVFormat, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "native" and (reason := why_not()):
        pytest.skip(reason)
    monkeypatch.setenv("SEQLOOM_KERNELS", form)
    layer, x = layer_of(), inputs(3, 60)
    y = run(layer, store_of(layer, format), x, [60], tables_of([0, 0, 0]))
    assert torch.equal(run(layer, store_of(layer, format), x, [1] * 60, tables_of([0, 0, 0], 3)), y)
    alone = run(layer, store_of(layer, format), x[1:2], [33, 5, 21, 1], tables_of([0], 11))
    assert torch.equal(alone[0], y[1])


@pytest.mark.parametrize("format", FORMATS)
def test_guesses_that_do_not_count_are_written_over(format: KVFormat) -> None:
    layer, x, wrong = layer_of(), inputs(2, 20), inputs(2, 5, seed=2)
    store, lengths, parts = store_of(layer, format), [0, 0], []
    tables = tables_of(lengths)
    plain = run(layer, store_of(layer, format), x, [20], tables)
    while max(lengths) < 20:
        accepted = [min(1 + row + sum(lengths) % 3, 20 - length) for row, length in enumerate(lengths)]
        call = torch.stack(
            [
                torch.cat((x[row, length : length + count], wrong[row, count:]))
                for row, (length, count) in enumerate(zip(lengths, accepted, strict=True))
            ]
        )
        y = layer(call, None, store.rows(0, 2, PageTables(tables.pages, torch.tensor(lengths))))[0]
        store.keep(0, accepted)
        for row, (length, count) in enumerate(zip(lengths, accepted, strict=True)):
            parts.append(torch.equal(y[row, :count], plain[row, length : length + count]))
            lengths[row] += count
    assert len(parts) > 8
    assert all(parts)


@pytest.mark.parametrize("format", FORMATS)
def test_a_copied_page_is_the_page(format: KVFormat) -> None:
    layer, x = layer_of(), inputs(1, 30)
    store, tables = store_of(layer, format), tables_of([0])
    y = run(layer, store, x, [30], tables)
    run(layer, store, x, [20], tables)
    before = store.nbytes
    for place, page in enumerate(tables.pages[0, :2].tolist()):
        store.copy_page(page, 38 + place)
    copied = tables.pages.clone()
    copied[0, :2] = torch.tensor([38, 39])
    others = layer(x[:, 20:], None, store.rows(0, 1, PageTables(copied, torch.tensor([20]))))[0]
    assert torch.equal(others, y[:, 20:])
    assert store.nbytes == before
    per_number = 1 if format == "fp8" else 4
    assert before == 2 * (PAGES + 1) * PAGE_TOKENS * layer.mixer.kv_heads * layer.mixer.head_width * per_number


@pytest.mark.parametrize("page_tokens", [0, 8, 48, 100, 512])
def test_pages_of_other_sizes_are_refused(page_tokens: int) -> None:
    with pytest.raises(ConfigError, match=f"page_tokens: {page_tokens} is not allowed; 16, 32, 64, 128, 256 are"):
        layer_of().mixer.new_store(PAGES, page_tokens, torch.float32)
