"""A layer that is ready for the short way goes on giving the bits of its modules, whatever becomes of its parts."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from seqloom.nn.layer import Layer
from seqloom.nn.parts import Parts
from seqloom.nn.state import KVState, MambaState
from seqloom.nn.step import few_tokens
from seqloom.ops.native.build import why_not
from seqloom.systems.hybrid_lm.model import make_layer
from tiny_models import VARIANTS, excite


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def layer_of(letter: str) -> Layer:
    """Its norms are stored in BF16, so the short way reads copies of them."""
    torch.manual_seed(0)
    layer = excite(make_layer(letter, VARIANTS["dense"])).eval()
    for norm in [layer.norm, layer.mixer.norm] if letter == "M" else [layer.norm]:
        norm.weight.data = norm.weight.data.bfloat16()
    return layer


def rates_in_place(layer: Layer) -> None:
    layer.mixer.A_log.data.mul_(2)  # which no version counts


def gain_in_place(layer: Layer) -> None:
    layer.norm.weight.data.mul_(2)


def gated_gain(layer: Layer) -> None:
    layer.mixer.norm.weight.data = layer.mixer.norm.weight.data * 2


def taps(layer: Layer) -> None:
    layer.mixer.conv1d.weight = nn.Parameter(layer.mixer.conv1d.weight * 2)


def matrix_in_place(layer: Layer) -> None:
    next(iter(layer.mixer.children())).weight.data.mul_(2)


def matrix(layer: Layer) -> None:
    weight = next(iter(layer.mixer.children())).weight
    weight.data = (2 * weight).bfloat16()


def norm(layer: Layer) -> None:
    layer.norm = excite(type(layer.norm)(64, 1e-5), seed=1)


def epsilon(layer: Layer) -> None:
    layer.norm.eps = 2.0


def child(layer: Layer) -> None:
    name, old = next(iter(layer.mixer.named_children()))
    new = type(old)(*reversed(old.weight.shape))
    new.weight.data.copy_(2 * old.weight)
    setattr(layer.mixer, name, new)


def hook(layer: Layer) -> None:
    next(iter(layer.mixer.children())).register_forward_hook(lambda module, given, y: 2 * y)


def shaping(layer: Layer) -> None:
    layer.mixer.shaping = layer.mixer.shaping._replace(inverse_temperature=3.0)


ANY = [gain_in_place, matrix_in_place, matrix, norm, epsilon, child, hook]
CHANGES = [("M", change) for change in [*ANY, rates_in_place, gated_gain, taps]]
CHANGES += [("*", change) for change in [*ANY, shaping]] + [("-", change) for change in ANY]


@pytest.mark.parametrize(("letter", "change"), CHANGES)
def test_a_change_counts_from_the_next_token(letter: str, change: Callable[[Layer], None]) -> None:
    if reason := why_not():
        pytest.skip(reason)
    layer, x = layer_of(letter), torch.randn(2, 2, 1, 64, generator=torch.Generator().manual_seed(1))

    def by_modules(x: Tensor, state: KVState | MambaState | None) -> Tensor:
        normed = layer.norm(x)
        return x + (layer.mixer(normed) if letter == "-" else layer.mixer(normed, None, state))

    states = [layer.new_state(2, x.dtype) for _ in range(3)]
    for state in states:
        assert few_tokens(layer.norm, layer.mixer, x[0], state) is not None
    unchanged = layer(x[1], None, states[2])[0]
    change(layer)
    y = layer(x[1], None, states[0])[0]
    assert torch.equal(y, by_modules(x[1], states[1]))
    assert not torch.equal(y, unchanged)


def test_nothing_changes_by_itself() -> None:
    layer = layer_of("M")
    parts = Parts(layer.norm, layer.mixer, [layer.mixer.A_log])
    assert parts.unchanged(layer.norm, layer.mixer)
    layer.mixer.D.data.mul_(2)
    assert parts.unchanged(layer.norm, layer.mixer)
    assert not parts.unchanged(layer_of("M").norm, layer.mixer)
