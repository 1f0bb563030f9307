"""All layers in one call, and whole steps: the bits of layer after layer, taken exactly where it may be."""

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from seqloom.nn.linear import Linear
from seqloom.nn.packed import pack_linears
from seqloom.nn.stack_step import few_tokens_of_rows
from seqloom.numerics.precision import PrecisionConfig, apply_precision
from seqloom.ops.kernels import invariant
from seqloom.ops.native.build import why_not
from seqloom.ops.token_draw import Race, token_draw
from seqloom.systems.hybrid_lm.model import HybridLM
from tiny_models import make, tokens

ROWS, PAGES, AHEAD = 3, 20, 3


@pytest.fixture(autouse=True)
def _native() -> Iterator[None]:
    if reason := why_not():
        pytest.skip(reason)
    with torch.inference_mode(), invariant():
        yield


def by_layers(model: HybridLM, x: Tensor, views: list[object]) -> Tensor:
    for layer, view in zip(model.backbone.layers, views, strict=True):
        x, _ = layer(x, None, view)
    return model.backbone.norm_f(x)


def at_once(model: HybridLM, x: Tensor, views: list[object]) -> Tensor | None:
    return few_tokens_of_rows(model.backbone.layers, model.backbone.norm_f, x, views)


def model_of(name: str, format: str) -> HybridLM:
    model = make(name)
    apply_precision(model, PrecisionConfig(activations=format))
    return model


@pytest.mark.parametrize("name", ["dense", "latent"])
@pytest.mark.parametrize("format", ["fp32", "bf16"])
def test_the_bits_of_layer_after_layer(name: str, format: str) -> None:
    model = model_of(name, format)
    if format == "bf16":
        pack_linears(model, "int8")
    text = tokens(ROWS, 40)
    caches = [model.new_cache(ROWS, PAGES, 16, AHEAD) for _ in range(2)]
    for cache in caches:
        for row in range(ROWS):
            cache.clear(row)
            assert cache.reserve(row, 40)
    at = 0
    for first, count, length, guessed in ((0, 3, 6, False), (1, 2, 1, False), (0, 3, 4, True), (0, 3, 1, False)):
        x = model.embed(text[first : first + count, at : at + length])
        views = [cache.states(first, count, length, guessed) for cache in caches]
        y = at_once(model, x, views[0])
        assert y is not None
        assert torch.equal(y, by_layers(model, x, views[1]))
        if guessed:
            for cache in caches:
                cache.keep(first, [2] * count)
        at += 2 if guessed else length


RACES = [Race(0.0), Race(1.3, 9, 0.9, 0.01), Race(0.7)]
KEYS = [17, 23, 2**64 - 5, 4, 1, 99, 3, 8, 2**63]


def drawn(logits: Tensor, race: Race, key: int) -> int:
    largest = logits.max()
    return token_draw(logits, largest.item(), *race, key) if race.sharpness else int(logits.argmax())


@pytest.mark.parametrize("format", ["fp32", "bf16"])
def test_whole_steps_have_the_bits_of_their_parts(format: str) -> None:
    model = model_of("dense", format)
    if format == "bf16":
        pack_linears(model, "nvfp4")
    caches = [model.new_cache(ROWS, PAGES, 16, AHEAD) for _ in range(2)]
    for cache in caches:
        for row in range(ROWS):
            cache.clear(row)
            assert cache.reserve(row, 40)

    def views(tokens: int, guessed: bool) -> list[list[object]]:
        return [cache.states(0, ROWS, tokens, guessed) for cache in caches]

    fed = tokens(ROWS, 3).tolist()
    states, others = views(3, guessed=True)
    steps = model.decoder(ROWS, 3, states)
    assert steps is not None
    races = [*RACES[:2], None]
    found = steps(fed, races, KEYS, 1)
    hidden, _ = model.hidden(torch.tensor(fed), states=others)
    logits = model.head(hidden)
    assert torch.equal(found.hidden, hidden)
    assert torch.equal(found.logits, logits)
    for row in range(2):
        for place in range(3 * row, 3 * row + 3):
            assert found.tokens[place] == drawn(logits[row, place % 3], races[row], KEYS[place])
    for cache in caches:
        cache.keep(0, [1, 3, 2])

    states, others = views(1, guessed=False)
    steps = model.decoder(ROWS, 1, states)
    assert steps is not None
    found = steps([[5], [6], [7]], RACES, KEYS, 3)
    assert found.logits is None
    token = torch.tensor([[5], [6], [7]])
    for time in range(3):
        hidden, _ = model.hidden(token, states=others if time == 0 else views(1, guessed=False)[1])
        assert torch.equal(found.hidden[:, time], hidden[:, 0])
        chosen = [drawn(*each) for each in zip(model.head(hidden)[:, 0], RACES, KEYS[3 * time :], strict=False)]
        assert found.tokens[3 * time : 3 * time + 3] == chosen
        token = torch.tensor(chosen)[:, None]

    packed = model.lm_head
    model.lm_head = Linear(64, model.vocab_size)
    model.lm_head.format = packed.format
    model.lm_head.weight.data[:] = torch.randn(model.vocab_size, 64)
    model.lm_head.weight.data[7, 0] = torch.nan
    steps = model.decoder(ROWS, 1, views(1, guessed=False)[0])
    assert steps is not None
    assert steps([[5], [6], [7]], RACES, KEYS, 2).tokens == [-1] * 6
    model.lm_head.register_forward_hook(lambda *_: None)
    assert model.decoder(ROWS, 1, views(1, guessed=False)[0]) is None


def test_a_changed_part_is_seen() -> None:
    model = model_of("grouped", "fp32")
    cache, other = (model.new_cache(1, 8, 16, 0) for _ in range(2))
    for each in (cache, other):
        each.clear(0)
        assert each.reserve(0, 20)

    def same() -> bool:
        x = model.embed(tokens(1, 1))
        y = at_once(model, x, cache.states(0, 1, 1))
        assert y is not None
        return torch.equal(y, by_layers(model, x, other.states(0, 1, 1)))

    assert same()
    for layer in model.backbone.layers:
        layer.norm.weight.data = layer.norm.weight.data * 1.5
    assert same()
    router = next(layer.mixer.gate for layer in model.backbone.layers if hasattr(layer.mixer, "gate"))
    router.top_k, router.scaling = 1, 3.0
    assert same()
    model.backbone.norm_f.weight.data = model.backbone.norm_f.weight.data * 2
    assert same()


def test_memory_goes_with_its_engine() -> None:
    model = model_of("dense", "fp32")
    cache = model.new_cache(1, 8, 16, 0)
    cache.clear(0)
    assert cache.reserve(0, 20)
    assert at_once(model, model.embed(tokens(1, 1)), cache.states(0, 1, 1)) is not None
    stored = weakref.ref(cache.states(0, 1, 1)[0].slots)
    del cache
    assert stored() is None


def test_nobody_is_passed_over() -> None:
    model = model_of("dense", "fp32")
    cache = model.new_cache(1, 8, 16, 0)
    cache.clear(0)
    assert cache.reserve(0, 20)
    x, views = model.embed(tokens(1, 1)), cache.states(0, 1, 1)
    assert at_once(model, x, model.new_states(1)) is None
    with invariant(False):
        assert at_once(model, x, views) is None
    for place in (model.backbone.layers[1], model.backbone.layers[1].mixer, model.backbone.norm_f):
        handle = place.register_forward_hook(lambda *_: None)
        assert at_once(model, x, views) is None
        handle.remove()
    layer = model.backbone.layers[0]
    for name, other in (("output_norm", nn.ReLU()), ("layer_scale", nn.Parameter(torch.ones(64)))):
        assert at_once(model, x, views) is not None
        kept = getattr(layer, name)
        setattr(layer, name, other)
        assert at_once(model, x, views) is None
        setattr(layer, name, kept)
