"""Narrow layer states: the contract of every state, and answers that depend on nothing but the tokens."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor

from seqloom.core.errors import ConfigError
from seqloom.nn import layer as layer_module
from seqloom.nn.layer import Layer
from seqloom.nn.mamba2 import ScanWeights
from seqloom.nn.narrow import NarrowFormat
from seqloom.nn.narrow_state import FP8, FP8KVState, NarrowMambaState
from seqloom.nn.state import KVState, LayerState
from seqloom.nn.state_formats import StateFormats
from seqloom.serve.config import Sampling
from seqloom.serve.engine import Engine
from seqloom.systems.hybrid_lm.model import make_layer
from tiny_models import VARIANTS, Nothing, draft_states, excite, make

FORMATS = get_args(NarrowFormat)
TOLERANCE = {"bf16": 3e-2, "fp16": 3e-3, "fp16_sr": 3e-3, "int8": 3e-2, "int8_sr": 5e-2, "fp8": 1e-1, "fp8_sr": 2e-1}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def layer_of(letter: str) -> Layer:
    torch.manual_seed(0)
    return excite(make_layer(letter, VARIANTS["dense"])).eval()


def inputs(batch: int = 2, length: int = 21) -> Tensor:
    return torch.randn(batch, length, 64, generator=torch.Generator().manual_seed(3))


def state_of(layer: Layer, ssm: str, batch: int, **changes: object) -> NarrowMambaState:
    settings = {"seed": 5, "place": "layers.3"} | changes
    state = layer.new_state(batch, torch.float32, StateFormats(ssm=ssm, seed=settings["seed"]), settings["place"])
    assert isinstance(state, NarrowMambaState)
    assert isinstance(state, LayerState)
    return state


class Mixing:
    """What mixes tokens in a Mamba layer, fed with given projections: nothing outside the state can differ."""

    def __init__(self, batch: int = 3, length: int = 21) -> None:
        mixer = layer_of("M").mixer
        self.layer, self._mixer = layer_of("M"), mixer
        _, self._xbc, self._dt = mixer.in_proj(inputs(batch, length)).split(
            [mixer.inner, mixer.conv_channels, mixer.heads], -1
        )
        self._weights = ScanWeights(mixer.conv1d.weight[:, 0], mixer.conv1d.bias, mixer.dt_bias, mixer.A_log, mixer.D)

    def __call__(self, state: NarrowMambaState, rows: Sequence[int], places: Sequence[range]) -> Tensor:
        """Tokens `places[i]` of row `rows[i]`."""
        picked = [torch.stack([part[row, list(place)] for row, place in zip(rows, places, strict=True)])
                  for part in (self._xbc, self._dt)]  # fmt: skip
        return self._mixer.mix(*picked, None, state, self._weights)


@pytest.mark.parametrize("format", FORMATS)
def test_pieces_of_any_size_give_the_same_bits(format: str) -> None:
    mix = Mixing(batch=1)
    whole, one_by_one, mixed = (state_of(mix.layer, format, 1) for _ in range(3))
    y = mix(whole, [0], [range(21)])
    assert torch.equal(torch.cat([mix(one_by_one, [0], [range(t, t + 1)]) for t in range(21)], 1), y)
    cuts = [0, 1, 9, 12, 21]
    pieces = [mix(mixed, [0], [range(*cut)]) for cut in pairwise(cuts)]
    assert torch.equal(torch.cat(pieces, 1), y)
    assert torch.equal(whole.read(), mixed.read())


@pytest.mark.parametrize("format", FORMATS)
def test_neighbours_at_other_places_change_no_bit(format: str) -> None:
    mix, lengths = Mixing(), [4, 9, 6]
    alone, joined = [], state_of(mix.layer, format, 0)
    for row, length in enumerate(lengths):
        state = state_of(mix.layer, format, 1)
        mix(state, [row], [range(length)])
        joined.join([state])
        alone.append(mix(state, [row], [range(length, length + 3)]))
    together = mix(joined, [0, 1, 2], [range(length, length + 3) for length in lengths])
    assert torch.equal(together, torch.cat(alone))
    joined.select(torch.tensor([2, 0, 2]))
    later = mix(joined, [2, 0, 2], [range(9, 12), range(7, 10), range(9, 12)])
    again = state_of(mix.layer, format, 1)
    mix(again, [0], [range(7)])
    assert torch.equal(later[1:2], mix(again, [0], [range(7, 10)]))
    assert torch.equal(later[0], later[2])


@pytest.mark.parametrize("format", FORMATS)
def test_going_back_to_a_mark_replays_the_same_bits(format: str) -> None:
    mix = Mixing(batch=1)
    state = state_of(mix.layer, format, 1)
    mix(state, [0], [range(8)])
    mark = state.snapshot()
    first = mix(state, [0], [range(8, 15)])
    for _ in range(2):
        state.restore(mark)
        mix(state, [0], [range(15, 18)])  # a wrong guess
        state.restore(mark)
        assert torch.equal(mix(state, [0], [range(8, 15)]), first)


@pytest.mark.parametrize("format", FORMATS)
def test_it_stays_near_the_wide_state_and_is_not_it(format: str) -> None:
    layer, x = layer_of("M"), inputs(length=40)
    exact = layer(x)[0] - x
    y = layer(x, None, state_of(layer, format, 2))[0] - x
    error = float((y - exact).norm() / exact.norm())
    assert TOLERANCE[format] / 100 < error < TOLERANCE[format]


@pytest.mark.parametrize("format", FORMATS)
def test_the_short_way_of_a_token_has_the_bits_of_the_modules(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = layer_of("M"), inputs(length=6)
    short, long = (state_of(layer, format, 2) for _ in range(2))
    ways = []
    few_tokens = layer_module.few_tokens

    def look(*arguments: object) -> Tensor | None:
        ways.append(few_tokens(*arguments))
        return ways[-1]

    monkeypatch.setattr(layer_module, "few_tokens", look)
    by_steps = [layer(x[:, t : t + 1].contiguous(), None, short)[0] for t in range(6)]
    if any(way is None for way in ways):
        pytest.skip("the short way needs native kernels")
    monkeypatch.setattr(layer_module, "few_tokens", lambda *_: None)
    assert torch.equal(torch.cat(by_steps, 1), torch.cat([layer(x[:, [t]], None, long)[0] for t in range(6)], 1))
    assert torch.equal(short.read(), long.read())
    assert torch.equal(short.window, long.window)


def test_other_seeds_and_places_round_differently() -> None:
    layer, x = layer_of("M"), inputs(1, 4)
    found = []
    for changes in ({}, {}, {"seed": 6}, {"place": "layers.4"}):
        state = state_of(layer, "int8_sr", 1, **changes)
        layer(x, None, state)
        found.append(state.read())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])


@pytest.mark.parametrize(("format", "row_bytes"), [("bf16", 32), ("fp16_sr", 32), ("int8_sr", 20), ("fp8", 20)])
def test_bytes_count_what_is_remembered(format: str, row_bytes: int) -> None:
    layer = layer_of("M")
    state = state_of(layer, format, 2)
    layer(inputs(), None, state)
    assert state.nbytes == 2 * (8 * 16 * row_bytes + 4 * 3 * (128 + 64))  # rows of 16 elements; the window is FP32
    assert state.window.dtype == torch.float32


# Keys and values ---------------------------------------------------------------------------------------------------


def kv_of(layer: Layer, batch: int) -> FP8KVState:
    state = layer.new_state(batch, torch.float32, StateFormats(keys_values="fp8"))
    assert isinstance(state, FP8KVState)
    return state


def test_keys_and_values_are_the_casts_of_ml_dtypes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    random = torch.Generator().manual_seed(0)
    keys, values = (300 * torch.randn(2, 2, 50, 16, generator=random) for _ in range(2))
    state = FP8KVState(2, 2, 16, torch.float32, torch.device("cpu"), k_scale=0.37, v_scale=2.5)
    for given, got, scale in zip((keys, values), state.append(keys, values), (0.37, 2.5), strict=True):
        scaled = (given.numpy() / torch.tensor(scale).numpy()).clip(-448, 448)
        theirs = torch.from_numpy(scaled.astype(ml_dtypes.float8_e4m3fn).astype("float32"))
        assert torch.equal(got, theirs * scale)
        assert (scaled == 448).any()


def test_attention_over_fp8_is_attention_over_what_it_holds() -> None:
    layer, x = layer_of("*"), inputs(2, 12)
    layer.mixer.k_scale, layer.mixer.v_scale = 0.01, 0.02
    state, wide = kv_of(layer, 2), KVState(2, 2, 16, torch.float32, torch.device("cpu"))

    def rounded(x: Tensor, scale: float) -> Tensor:
        return (x / scale).clamp(-448, 448).to(FP8).float() * scale

    append = wide.append
    wide.append = lambda k, v: append(rounded(k, 0.01), rounded(v, 0.02))
    wide.extend = None  # the short way would write keys and values as they are
    y = layer(x, None, state)[0]
    torch.testing.assert_close(y, layer(x, None, wide)[0])
    assert not torch.allclose(y, layer(x)[0], atol=1e-4)


def test_fp8_keys_and_values_keep_the_contract() -> None:
    layer, x = layer_of("*"), inputs(3, 21)
    full = layer(x, None, kv_of(layer, 3))[0]
    state = kv_of(layer, 3)
    steps = [layer(x[:, :9], None, state)[0]] + [layer(x[:, [t]], None, state)[0] for t in range(9, 12)]
    torch.testing.assert_close(torch.cat(steps, 1), full[:, :12], atol=1e-5, rtol=1e-5)
    mark = state.snapshot()
    layer(x[:, 15:20], None, state)
    state.restore(mark)
    state.select(torch.tensor([2, 0]))
    shorter = kv_of(layer, 1)
    layer(x[1:2, :4], None, shorter)
    state.join([shorter])
    rows = torch.stack([x[2, 12], x[0, 12], x[1, 4]])[:, None]
    expected = torch.stack([full[2, 12], full[0, 12], full[1, 4]])[:, None]
    torch.testing.assert_close(layer(rows, None, state)[0], expected, atol=1e-5, rtol=1e-5)
    assert state.nbytes == (13 + 13 + 5) * 2 * 2 * 16  # one byte for each of keys and values


# Models ------------------------------------------------------------------------------------------------------------


def test_a_model_keeps_all_its_states_in_the_formats_it_is_told() -> None:
    model = make("mtp")
    before = sum(state.nbytes for state in model.new_states(1) if state is not None)
    model.keep_states(StateFormats(keys_values="fp8", ssm="int8_sr"))
    states = [*model.new_states(1), *draft_states(model, 1)]
    assert {type(state) for state in states} == {NarrowMambaState, FP8KVState, type(None)}
    after = sum(state.nbytes for state in model.new_states(1) if state is not None)
    assert after < before


@pytest.mark.full
def test_drafting_changes_no_answer_with_narrow_states() -> None:
    engine = Engine((make("mtp"), Nothing()), kv_cache="fp8", ssm_state="int8_sr")
    prompts = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22]]
    sampling = Sampling(max_tokens=8, temperature=0.7, seed=3)
    plain = [each.token_ids for each in engine.generate(prompts, sampling)]
    assert [each.token_ids for each in engine.generate(prompts, sampling, draft_tokens=3)] == plain
    assert [engine.generate([prompt], sampling)[0].token_ids for prompt in prompts] == plain


class OneWay:
    vocab_size = 256


def test_formats_that_cannot_be_had_are_named() -> None:
    with pytest.raises(ConfigError, match="a OneWay stores its states in one way only"):
        Engine((OneWay(), Nothing()), kv_cache="fp8")
    # Types are checked under pytest before a config can speak for itself.
    for name, wrong, said in (("ssm", "int4", "known: fp32, bf16, fp16"), ("keys_values", "fp4", "known: model, fp8")):
        formats = StateFormats()
        object.__setattr__(formats, name, wrong)
        with pytest.raises(ConfigError, match=rf"state_formats\.{name}: '{wrong}' is not allowed; {said}"):
            formats.__post_init__()
