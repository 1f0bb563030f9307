"""The three products of a linear layer in few bits, against the same products formed by hand from dequantized operands.

FP64 sums of the dequantized operands are what the products should be; they may differ by 2^-18 of the sum of magnitudes
(specification 2.3) before the one rounding to BF16."""

import copy
import itertools

import pytest
import torch
from torch import nn

from seqloom.core.distributed import Axis
from seqloom.nn.linear import Linear
from seqloom.nn.mlp import Mlp
from seqloom.numerics.hadamard import DEFAULT_SIGNS
from seqloom.numerics.place import Clock, Place, Shared, events, spoilt_operands, used_again
from seqloom.numerics.precision import PrecisionConfig, PrecisionRule, apply_precision
from seqloom.numerics.quantized import quantize
from seqloom.numerics.recipes import PRODUCTS, Fp8Options, MorOptions, Nvfp4Options, Operand, Products, products
from seqloom.ops.quantized_linear import quantized_linear

TOKENS, INPUTS, OUTPUTS = 21, 40, 24  # no multiple of any block
FORMATS = ("fp8", "fp8_delayed", "fp8_blockwise", "mxfp8", "nvfp4", "mxfp4")


def operands(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, W and dy; x and dy in BF16."""
    torch.manual_seed(seed)
    x, w, dy = torch.randn(TOKENS, INPUTS), torch.randn(OUTPUTS, INPUTS), 1e-4 * torch.randn(TOKENS, OUTPUTS)
    return x.bfloat16(), w, dy.bfloat16()


def products_of(x, w, dy, how: Products, place: Place | None = None):
    """y, dx and dW."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    y = quantized_linear(x, w, how, place or Place("w", Clock()))
    y.backward(dy)
    return y.detach(), x.grad, w.grad


def by_hand(x: torch.Tensor, operand: Operand, axis: int, key: int) -> torch.Tensor:
    if operand.scheme is None:
        return x.double()
    signs = DEFAULT_SIGNS * (operand.scheme.along // 16) if operand.hadamard else None
    random = key if operand.stochastic else None
    return quantize(x, operand.scheme, axis, random=random, bits=operand.bits, signs=signs).dequantize().double()


def close(found: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    expected, magnitudes = a @ b, a.abs() @ b.abs()
    rounding = 2.0**-8 * expected.abs() if found.dtype == torch.bfloat16 else 0
    assert bool(((found.double() - expected).abs() <= 2.0**-18 * magnitudes + rounding).all())


@pytest.mark.parametrize("name", FORMATS)
def test_all_three_products_are_those_of_the_dequantized_operands(name: str):
    (x, w, dy), how, place = operands(), PRODUCTS[name], Place("w", Clock(seed=3))
    y, dx, dw = products_of(x, w, dy, how, place)
    assert (y.dtype, dx.dtype, dw.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    narrow = w.bfloat16()
    close(y, by_hand(x, how.forward[0], 1, 0), by_hand(narrow, how.forward[1], 1, 0).T)
    gradient = by_hand(dy, how.input_gradient[0], 1, place.key("input_gradient.dy"))
    close(dx, gradient, by_hand(narrow, how.input_gradient[1], 0, 0))
    gradient = by_hand(dy, how.weight_gradient[0], 0, place.key("weight_gradient.dy"))
    close(dw, gradient.T, by_hand(x, how.weight_gradient[1], 0, 0))
    assert (y - x.float() @ w.T).norm() / y.norm() < 0.3  # and near the truth
    assert (dw - dy.float().T @ x.float()).norm() / dw.norm() < 0.4


def test_the_published_recipe_is_what_the_format_multiplies():
    """Table 4.6 of the specification, line by line."""
    how = PRODUCTS["nvfp4"]
    x, w = how.forward
    assert (x.scheme.along, x.scheme.across, w.scheme.along, w.scheme.across) == (16, 1, 16, 16)
    assert how.input_gradient[1] == w
    flags = [(o.stochastic, o.hadamard) for o in (x, w, how.input_gradient[0], *how.weight_gradient)]
    assert flags == [(False, False), (False, False), (True, False), (True, True), (False, True)]
    how = PRODUCTS["fp8"]
    assert [pair[0].scheme.element for pair in (how.forward, how.input_gradient)] == ["e4m3", "e5m2"]
    assert all(o.scheme.per_tensor for o in (*how.forward, *how.input_gradient, *how.weight_gradient))
    bare = products("nvfp4", nvfp4=Nvfp4Options(hadamard=False, stochastic_gradients=False, weight_tiles=False))
    assert {o for pair in (bare.forward, bare.input_gradient, bare.weight_gradient) for o in pair} == {x}


def test_random_numbers_depend_on_the_place_and_time_alone():
    x, w, dy = operands()
    how, clock = PRODUCTS["nvfp4"], Clock(seed=1)
    first = products_of(x, w, dy, how, Place("a", clock))
    products_of(x, w, dy, how, Place("b", clock))  # another layer draws in between
    again = products_of(x, w, dy, how, Place("a", clock))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    with used_again(1):
        second = products_of(x, w, dy, how, Place("a", clock))
    assert torch.equal(first[0], second[0])
    assert not any(torch.equal(one, other) for one, other in zip(first[1:], second[1:], strict=True))
    clock.begin(0, 1)
    later = products_of(x, w, dy, how, Place("a", clock))
    assert torch.equal(first[0], later[0])
    assert not torch.equal(first[1], later[1])
    settings = itertools.product("ab", (0, 1), (0, 1), (0, 1), ("forward.x", "forward.w"))
    keys = {Place(name, Clock(seed, rank)).of(part).key(role) for name, seed, rank, part, role in settings}
    assert len(keys) == 32


@pytest.mark.parametrize("name", ["fp8", "mxfp8", "nvfp4"])
def test_a_weight_is_quantized_once_and_anew_after_it_changed(name: str, monkeypatch: pytest.MonkeyPatch):
    import seqloom.ops.quantized_linear as module

    made, form = [], module.represented
    monkeypatch.setattr(module, "represented", lambda *given: made.append(given[4]) or form(*given))
    x, w, dy = operands()
    w.requires_grad_()
    place, how = Place("w", Clock()), PRODUCTS[name]

    def step(place: Place) -> torch.Tensor:
        w.grad = None
        quantized_linear(x, w, how, place).backward(dy)
        return w.grad.clone()

    first = [step(place) for _ in range(2)]
    roles = ["forward.w"] if name != "mxfp8" else ["forward.w", "input_gradient.w"]  # squares serve both passes
    x.requires_grad_()
    step(place)
    assert [role for role in made if role.endswith(".w")] == roles
    y = quantized_linear(x, w, how, place)
    with torch.no_grad():
        w.mul_(-3)
    changed = quantized_linear(x, w, how, place)
    assert torch.equal(changed, quantized_linear(x, w, how, Place("w", place.clock)))
    assert not torch.equal(changed, y)
    assert torch.equal(first[0], first[1])
    assert copy.deepcopy(place)._kept == {}


def test_the_late_switch_is_bf16_from_its_step_on():
    (x, w, dy), how = operands(), PRODUCTS["nvfp4"]
    wide = products_of(x, w, dy, Products(*[(Operand(), Operand())] * 3))
    for switch, alike in (("both", (True, True, True)), ("forward", (True, False, False))):
        clock = Clock(switch_step=7, switch=switch)
        clock.begin(6)
        assert not torch.equal(products_of(x, w, dy, how, Place("w", clock))[0], wide[0])
        clock.begin(7)
        found = products_of(x, w, dy, how, Place("w", clock))
        assert tuple(torch.equal(a, b) for a, b in zip(found, wide, strict=True)) == alike


def test_the_bf16_recipe_is_a_linear_layer_under_autocast():
    x, w, dy = operands()
    ours, theirs = Linear(INPUTS, OUTPUTS), nn.Linear(INPUTS, OUTPUTS, bias=False)
    ours.format = "bf16"
    results = []
    for layer in (ours, theirs):
        layer.weight.data.copy_(w)
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=layer is theirs):
            y = layer(given)
        y.backward(dy)
        results.append((y, given.grad, layer.weight.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=2**-7, atol=0)  # torch rounds its sums anew
    plain = products_of(x, w, dy, Products(*[(Operand(), Operand())] * 3))
    assert all(torch.equal(one, other) for one, other in zip(results[0], plain, strict=True))


@pytest.mark.parametrize("name", ["fp8", "nvfp4"])
def test_zeros_stay_zeros(name: str):
    x, w, dy = operands()
    y, dx, dw = products_of(0 * x, w, 0 * dy, PRODUCTS[name])
    assert not any(bool(each.any()) for each in (y, dx, dw))


class Stacked(nn.Module):
    """Two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Mlp(32, 48), Mlp(32, 48)])

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


def stacked(**recipe) -> Stacked:
    torch.manual_seed(0)
    model = Stacked()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    apply_precision(model, PrecisionConfig(activations="bf16", **recipe))
    return model


@pytest.mark.parametrize(
    ("recipe", "value"), [("fp8_nemotron_h", torch.inf), ("nvfp4", torch.nan), ("nvfp4", torch.inf)]
)
def test_what_is_not_finite_is_neither_hidden_nor_nameless(recipe: str, value: float):
    model = stacked(recipe=recipe, keep_first=0, keep_last=0)
    x = torch.randn(8, 32).bfloat16()
    model(x)
    assert spoilt_operands(model) == []
    x[3, 5] = value
    with torch.no_grad():
        y = model.layers[0](x)
    assert bool(y.isnan().all())
    assert spoilt_operands(model)[0] == "layers.0.up_proj.weight (forward.x)"


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    model(torch.randn(24, 32).bfloat16().requires_grad_()).float().square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("recipe", ["mor_tensor", "mor_subtensor"])
def test_mor_is_bf16_at_threshold_zero_and_fp8_without_bound(recipe: str):
    wide = gradients(stacked(recipe="bf16"))
    never = stacked(recipe=recipe, mor=MorOptions(threshold=0.0))
    assert equal(gradients(never), wide)
    kinds = events(never)
    assert len(kinds) == 4 * 6
    assert all(count["e4m3"] == 0 and count["bf16"] == 1 for count in kinds.values())  # one block each
    always = stacked(recipe=recipe, mor=MorOptions(threshold=1e9))
    found = gradients(always)
    assert all(count == {"e4m3": 1, "bf16": 0} for count in events(always).values())
    rules = (PrecisionRule(modules="layers.*", format="fp8"),)
    fp8 = stacked(rules=rules, fp8=Fp8Options(gradient="e4m3"))
    if recipe == "mor_tensor":
        assert equal(found, gradients(fp8))
    else:  # one block is the tensor, and GAM then is current scaling; the sums are of FP32 operands
        expected = gradients(fp8)
        assert all((found[n] - expected[n]).norm() < 1e-2 * expected[n].norm() for n in expected)


def test_mor_takes_the_narrowest_representation_that_is_good_enough():
    torch.manual_seed(0)
    x, w, _ = operands()
    wild = (x * torch.logspace(-6, 0, INPUTS)).bfloat16()  # per tensor, FP8 flushes most of it
    how, place = PRODUCTS["mor_tensor"], Place("w", Clock())
    quantized_linear(wild, w.requires_grad_(), how, place).sum().backward()
    assert place.events["forward.x"].tolist() == [0, 1]
    assert place.events["forward.w"].tolist() == [1, 0]
    parts = products("mor_subtensor", mor=MorOptions(partition="channel", three_way=True))
    place = Place("w", Clock())
    y = quantized_linear(wild, w, parts, place)
    y.sum().backward()
    assert int(place.events["forward.x"].sum()) == TOKENS
    assert int(place.events["weight_gradient.x"].sum()) == INPUTS
    ladder = products("mor_nvfp4", mor=MorOptions(nvfp4_threshold=1e9))
    place = Place("w", Clock())
    quantized_linear(x, w, ladder, place).sum().backward()
    assert all(count.tolist() == [1, 0, 0] for count in place.events.values())
    for metric in ("relative_l2", "flush", "range"):
        how = products("mor_tensor", mor=MorOptions(metric=metric))
        place = Place("w", Clock())
        y = quantized_linear(wild, w, how, place)
        y.sum().backward()
        assert place.events["forward.w"].tolist() == [1, 0], metric
        assert place.events["forward.x"].tolist() == ([1, 0] if metric == "relative_l2" else [0, 1]), metric


def test_events_are_those_of_one_step_and_not_counted_twice_by_recomputation():
    from torch.utils.checkpoint import checkpoint

    model = stacked(recipe="mor_tensor")
    x = torch.randn(8, 32).bfloat16().requires_grad_()
    clock = model.layers[0].up_proj.places["weight"].clock
    for micro in range(2):
        clock.begin(0, micro)
        for layer in model.layers:
            checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert {sum(count.values()) for count in events(model).values()} == {2}
    clock.begin(1)
    assert {sum(count.values()) for count in events(model).values()} == {0}


@pytest.mark.parametrize("name", ["fp8", "fp8_delayed", "nvfp4", "mor_tensor"])
@pytest.mark.parametrize("dim", [0, 1])
def test_what_is_cut_over_ranks_has_the_scale_of_the_whole(name: str, dim: int, monkeypatch: pytest.MonkeyPatch):
    """Two ranks, one after the other: at first each with its own largest magnitudes, which are noted, then with those
    of both. Shares of results that no rank sums are then those of one process, to the last bit."""
    torch.manual_seed(0)
    x, w, dy = torch.randn(32, 64).bfloat16(), torch.randn(64, 64), torch.randn(32, 64).bfloat16()
    x[:, 40], w[7, 9], dy[:, 3] = 9 * x[:, 40], 30.0, 7 * dy[:, 3]  # the ranks differ
    how = products(name, nvfp4=Nvfp4Options(stochastic_gradients=False))
    y, dx, dw = products_of(x, w, dy, how)
    noted: list[list[torch.Tensor]] = [[], []]
    for asked in (False, True):
        for index, part in enumerate(torch.arange(64).chunk(2)):
            calls = iter(range(99))

            def most(axis: Axis, values: torch.Tensor) -> torch.Tensor:
                number = next(calls)  # noqa: B023
                if not asked:  # noqa: B023
                    noted[index].append(values.clone())  # noqa: B023
                return torch.maximum(noted[0][number], noted[1][number]) if asked else values  # noqa: B023

            monkeypatch.setattr(Axis, "most_", most)
            place = Place("w", Clock())
            place.shared = Shared(Axis(index, 2), dim)
            given = (x, w[part], dy[:, part]) if dim == 0 else (x[:, part], w[:, part], dy)
            monkeypatch.setattr(Axis, "sum_", lambda self, tensor: tensor)  # of errors, far from any threshold here
            found = products_of(*given, how, place)
            if asked:
                assert torch.equal(found[2], dw[part] if dim == 0 else dw[:, part])
                assert torch.equal(found[0], y[:, part]) if dim == 0 else torch.equal(found[1], dx[:, part])
    assert not all(torch.equal(one, other) for one, other in zip(*noted, strict=True))
