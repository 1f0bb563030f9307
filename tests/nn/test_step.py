"""The short way of a few tokens: the bits of the modules, taken exactly where it may be; experts need `invariant()`."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqloom.nn import layer as layer_module
from seqloom.nn.layer import Layer
from seqloom.nn.linear import Linear
from seqloom.nn.lora import Factors, attach
from seqloom.nn.packed import PackedExperts, PackedLinear, pack_linears
from seqloom.nn.state import KVState, MambaState
from seqloom.nn.step import MOST_ROWS, MOST_TOKENS, few_tokens
from seqloom.numerics.precision import PrecisionConfig, apply_precision
from seqloom.ops.kernels import invariant
from seqloom.ops.native.build import why_not
from seqloom.ops.native.call import FLAG, kernel
from seqloom.ops.native.moe_step import route
from seqloom.ops.packed_linear import pack
from seqloom.systems.hybrid_lm.model import HybridLM, make_layer
from tiny_models import VARIANTS, excite, make

EXPERTS = ["moe", "latent", "grouped"]
LETTERS = ["M", "*", "-"]
FORMATS = ["fp32", "bf16"]
STORED = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if reason := why_not():
        pytest.skip(reason)
    monkeypatch.delenv("SEQLOOM_KERNELS", raising=False)
    poison = kernel("poison_scratch", FLAG)
    poison(1)
    with torch.inference_mode():
        yield
    poison(0)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the short way was taken, layer by layer."""
    ways: list[bool] = []

    def look(*arguments: Any) -> Tensor | None:
        y = few_tokens(*arguments)
        ways.append(y is not None)
        return y

    monkeypatch.setattr(layer_module, "few_tokens", look)
    return ways


def layer_of(name: str, format: str = "fp32", stored: torch.dtype = torch.float32) -> Layer:
    torch.manual_seed(0)
    made = make_layer("E", VARIANTS[name]) if name in EXPERTS else make_layer(name, VARIANTS["dense"])
    layer = excite(made).eval()
    apply_precision(layer, PrecisionConfig(activations=format))
    for name, parameter in layer.named_parameters():
        if name.rpartition(".")[2] not in ("A_log", "D", "dt_bias"):
            parameter.data = parameter.data.to(stored)
    return layer


def by_modules(layer: Layer, x: Tensor, state: KVState | MambaState | None) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_module, "few_tokens", lambda *_: None)
        return layer(x, None, state)[0]


def inputs(batch: int, length: int, format: str = "fp32") -> Tensor:
    x = torch.randn(batch, length, 64, generator=torch.Generator().manual_seed(1))
    return x if format == "fp32" else x.bfloat16()


@pytest.mark.parametrize("name", [*LETTERS, *EXPERTS])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_the_bits_of_the_modules(name: str, format: str, stored: torch.dtype, taken: list[bool]) -> None:
    layer = layer_of(name, format, stored)
    x = inputs(3, 40, format)
    states = [layer.new_state(3, x.dtype) for _ in range(2)]
    start = 0
    for tokens in (12, 1, 1, MOST_TOKENS, 2, 1):
        piece = x[:, start : start + tokens]
        start += tokens
        with invariant(name in EXPERTS):
            assert torch.equal(layer(piece.contiguous(), None, states[0])[0], by_modules(layer, piece, states[1]))
    assert taken == [False, True, True, True, True, True]
    if name == "M":
        assert torch.equal(states[0].ssm, states[1].ssm)
        assert torch.equal(states[0].window, states[1].window)


@pytest.mark.parametrize("name", [*LETTERS, "moe"])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("stored", ["int8", "fp8", "nvfp4"])
def test_packed_matrices_among_plain_ones(name: str, format: str, stored: str, taken: list[bool]) -> None:
    layer = layer_of(name, format)
    if name in EXPERTS:
        pack_linears(layer, stored)
        assert isinstance(layer.mixer.experts, PackedExperts)
    for child in list(dict(layer.mixer.named_children()))[::2]:  # the first of the layer's matrices, but not all
        if isinstance(linear := getattr(layer.mixer, child), Linear):
            setattr(layer.mixer, child, PackedLinear(pack(linear.weight, stored), linear.format))
    x = inputs(3, 20, format)
    states = [layer.new_state(3, x.dtype) for _ in range(2)]
    for t in range(0, 20, 4):
        piece = x[:, t : t + 4].contiguous()
        with invariant(name in EXPERTS):
            assert torch.equal(layer(piece, None, states[0])[0], by_modules(layer, piece, states[1]))
    assert all(taken)


@pytest.mark.parametrize("name", [*LETTERS, "grouped"])
@pytest.mark.parametrize("format", FORMATS)
def test_no_row_sees_its_neighbours(name: str, format: str, taken: list[bool]) -> None:
    layer = layer_of(name, format)
    x = inputs(4, 20, format)
    alone, joined = [], layer.new_state(0, x.dtype)
    for row, length in enumerate([9, 14, 3, 9]):
        state = layer.new_state(1, x.dtype)
        layer(x[row : row + 1, :length], None, state)
        if joined is not None:
            joined.join([state])
        with invariant(name in EXPERTS):
            alone.append([layer(x[row : row + 1, length + t : length + t + 1], None, state)[0] for t in range(3)])
    for t in range(3):
        step = torch.stack([x[row, length + t] for row, length in enumerate([9, 14, 3, 9])])[:, None]
        with invariant(name in EXPERTS):
            assert torch.equal(layer(step, None, joined)[0], torch.cat([one[t] for one in alone]))
    assert taken[-3:] == [True] * 3


@pytest.mark.parametrize("letter", ["M", "*"])
def test_a_mark_outlives_steps_in_place(letter: str, taken: list[bool]) -> None:
    layer = layer_of(letter)
    x = inputs(2, 20)
    state = layer.new_state(2, torch.float32)
    for t in range(6):
        layer(x[:, t : t + 1].contiguous(), None, state)
    mark = state.snapshot()

    def on() -> Tensor:
        return torch.cat([layer(x[:, t : t + 1].contiguous(), None, state)[0] for t in range(6, 12)], 1)

    first = on()
    for _ in range(2):
        state.restore(mark)
        assert torch.equal(on(), first)
    assert all(taken)


def test_a_state_is_written_in_place_while_nobody_holds_it() -> None:
    layer = layer_of("M")
    state = layer.new_state(1, torch.float32)
    places = []
    for _ in range(3):
        layer(inputs(1, 1), None, state)
        places.append(state.ssm.data_ptr())
    assert places[0] == places[1] == places[2]
    held = state.snapshot()[1]
    before = held.clone()
    layer(inputs(1, 1), None, state)
    assert torch.equal(held, before)
    assert not torch.equal(state.ssm, before)


def _hook(layer: Layer) -> None:
    layer.mixer.up_proj.register_forward_hook(lambda *_: None)


def _adapter(layer: Layer) -> None:
    attach(layer, ["mixer.up_proj"], Factors(rank=2, scale=1.0))


def _output_norm(layer: Layer) -> None:
    layer.output_norm = nn.LayerNorm(64)


def _scale(layer: Layer) -> None:
    layer.layer_scale = nn.Parameter(torch.ones(64))


def _other_format(layer: Layer) -> None:
    layer.mixer.down_proj.format = "bf16"


@pytest.mark.parametrize("change", [_hook, _output_norm, _scale, _other_format])
def test_a_changed_layer_goes_through_its_modules(change: Any, taken: list[bool]) -> None:
    layer = layer_of("-")
    layer(inputs(1, 1))
    change(layer)
    layer(inputs(1, 1))
    assert taken in ([True, False], [True])


def test_an_adapted_layer_goes_through_its_modules(taken: list[bool]) -> None:
    with torch.inference_mode(False), torch.no_grad():
        model = make("dense")
        attach(model, ["backbone.layers.0.mixer.in_proj"], Factors(rank=2, scale=1.0))
        model(torch.ones(1, 1, dtype=torch.int64), states=model.new_states(1))
    assert taken[0] is False
    assert taken.count(True) == len(taken) - 1


@pytest.mark.parametrize("override", ["torch", "norm=torch", "attention=reference"])
def test_an_override_of_any_op_is_heeded(override: str, monkeypatch: pytest.MonkeyPatch, taken: list[bool]) -> None:
    layer = layer_of("-")
    layer(inputs(1, 1))
    monkeypatch.setenv("SEQLOOM_KERNELS", override)
    layer(inputs(1, 1))
    assert taken == [True, False]


def test_many_tokens_documents_and_gradients_go_through_the_modules(taken: list[bool]) -> None:
    layer = layer_of("-")
    layer(inputs(MOST_ROWS, 1))
    layer(inputs(MOST_ROWS + 1, 1))
    layer(inputs(1, MOST_TOKENS + 1))
    layer(inputs(0, 1))
    assert taken == [True, False, False, False]
    layer(inputs(1, 1), torch.zeros(1, 1, dtype=torch.int64))
    assert len(taken) == 4
    with torch.inference_mode(False), torch.enable_grad():
        layer_of("-")(inputs(1, 1))[0].sum().backward()
    assert taken[-1] is False


@pytest.mark.parametrize("wanted", [False, True])
def test_every_layer_of_a_model_takes_it_but_experts_that_need_not_be_invariant(
    wanted: bool, taken: list[bool]
) -> None:
    model: HybridLM = make("mtp")
    with invariant(wanted):
        model(torch.ones(2, 1, dtype=torch.int64), states=model.new_states(2))
    assert taken == [wanted or letter != "E" for letter in "MEM*EME"]


def _router_hook(layer: Layer) -> None:
    layer.mixer.gate.register_forward_hook(lambda *_: None)


def _other_experts_format(layer: Layer) -> None:
    layer.mixer.experts.format = "bf16"


def _override(_: Layer) -> None:
    os.environ["SEQLOOM_KERNELS"] = "experts=torch"


@pytest.mark.parametrize("change", [_router_hook, _other_experts_format, _override])
def test_changed_experts_go_through_their_modules(
    change: Any, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQLOOM_KERNELS", "")
    layer = layer_of("latent")
    with invariant():
        layer(inputs(1, 1))
        change(layer)
        layer(inputs(1, 1))
    assert taken == [True, False]


@pytest.mark.parametrize(("groups", "best_groups"), [(1, 1), (4, 2), (12, 7)])
def test_a_router_takes_the_first_of_equals(groups: int, best_groups: int) -> None:
    generator, experts, top_k = torch.Generator().manual_seed(0), 12, 5
    scores = torch.randint(0, 3, (100, experts), generator=generator) / 2  # so few values that most choices are ties
    bias = torch.randint(0, 2, (experts,), generator=generator) / 4
    chosen, weights, found = route(scores.logit(), bias, (experts, top_k, groups, best_groups, True, 2.5))
    assert torch.equal(found, scores)
    for s, row in enumerate((scores + bias).tolist()):
        members = torch.arange(experts).view(groups, -1).tolist()
        members.sort(key=lambda group: -sum(sorted(row[e] for e in group)[-2:]))
        kept = sorted(e for group in members[:best_groups] for e in group)
        best = sorted(kept, key=lambda e: -row[e])[:top_k]
        assert chosen[s].tolist() == best
        assert torch.equal(weights[s], scores[s, best] / (scores[s, best].sum() + 1e-20) * 2.5)
