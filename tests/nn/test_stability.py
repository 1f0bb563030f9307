import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqloom.core.config import check, parse, to_data
from seqloom.core.errors import ConfigError
from seqloom.nn import linear, sigma_reparam
from seqloom.nn.fold import fold
from seqloom.nn.sigma_reparam import SigmaLinear, advance
from seqloom.nn.stability import METHODS, Stability
from seqloom.systems.hybrid_lm.model import HybridLM, make_layer
from tiny_models import VARIANTS, excite, make, tokens

CONFIG = VARIANTS["dense"]
EXTRAS = {
    "rms": Stability(qk_norm=True, output_norm=True, norm="rms"),
    "per_head": Stability(qk_norm=True, v_norm="head", per_head=True),
    "v_width": Stability(qk_norm=True, v_norm="width"),
    "everything": Stability(qk_norm=True, v_norm="head", pre_norm=False, soft_cap=2.0, inverse_temperature=0.5,
                            soft_clip=(-0.03, 1.03), output_norm=True, layer_scale=0.3, sigma_reparam=True),
}  # fmt: skip
SMALL_CAP = {
    "soft_cap": Stability(soft_cap=0.5),
    "qk_norm_cap": Stability(qk_norm=True, soft_cap=0.5),
}  # caps that bite
CASES = METHODS | SMALL_CAP | EXTRAS


def reference(layer: nn.Module, letter: str, s: Stability, x: Tensor) -> Tensor:
    """One attention or MLP layer with every method, from the formulas, on the layer's parameters."""
    p = dict(layer.named_parameters())

    def matrix(name: str) -> Tensor:
        w = p[f"mixer.{name}.weight"]
        return w * (p[f"mixer.{name}.spectrum.gain"] / torch.linalg.matrix_norm(w, 2)) if s.sigma_reparam else w

    def norm(y: Tensor, name: str, over: int = 1) -> Tensor:
        axes = list(range(-over, 0))
        if s.norm == "layer":
            y = y - y.mean(axes, keepdim=True)
        gain = p[f"{name}.weight"]
        shape = y.shape[-2:] if gain.numel() > y.shape[-1] else y.shape[-1:]
        y = y / (y.square().mean(axes, keepdim=True) + CONFIG.norm_eps).sqrt() * gain.view(shape)
        return y + p[f"{name}.bias"].view(shape) if s.norm == "layer" else y

    def rms(y: Tensor) -> Tensor:
        return y / (y.square().mean(-1, keepdim=True) + CONFIG.norm_eps).sqrt() * p["norm.weight"]

    normed = x if letter == "*" and not s.pre_norm else rms(x)
    if letter == "*":
        q, k, v = (normed @ matrix(f"{name}_proj").mT for name in "qkv")
        q, k, v = q.unflatten(-1, (4, 16)), k.unflatten(-1, (2, 16)), v.unflatten(-1, (2, 16))
        if s.qk_norm:
            q, k = norm(q, "mixer.q_norm"), norm(k, "mixer.k_norm")
        if s.v_norm != "none":
            v = norm(v, "mixer.v_norm", over=2 if s.v_norm == "width" else 1)
        scores = torch.einsum("bthk,bshk->bhts", q, k.repeat_interleave(2, 2)) / 4
        scores = scores if s.soft_cap is None else s.soft_cap * torch.tanh(scores / s.soft_cap)
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        prob = (s.inverse_temperature * scores).masked_fill(~seen, -math.inf).softmax(-1)
        if s.soft_clip is not None:
            prob = ((s.soft_clip[1] - s.soft_clip[0]) * prob + s.soft_clip[0]).clip(0, 1)
        y = torch.einsum("bhts,bshk->bthk", prob, v.repeat_interleave(2, 2)).flatten(-2) @ matrix("o_proj").mT
    else:
        y = F.relu(normed @ matrix("up_proj").mT).square() @ matrix("down_proj").mT
    y = norm(y, "output_norm") if s.output_norm else y
    return x + (y if s.layer_scale is None else y * p["layer_scale"])


@pytest.mark.parametrize("letter", ["*", "-"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_formulas_in_fp64(monkeypatch, name, letter):
    for module in (linear, sigma_reparam):
        monkeypatch.setattr(module, "dtype_of", lambda format: torch.float64)
    stability = CASES[name]
    layer = excite(make_layer(letter, replace(CONFIG, stability=stability))).double()
    for _ in range(400 if stability.sigma_reparam else 0):
        advance(layer)
    x = torch.randn(2, 9, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    results = layer(x)[0], reference(layer, letter, stability, x)
    found = [[y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])] for y in results]
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_seed_draws_the_same_weights_with_and_without_a_method(name):
    """So that runs that differ in the method alone are paired."""

    def build(stability: Stability) -> dict[str, Tensor]:
        torch.manual_seed(5)
        return HybridLM(replace(VARIANTS["mtp"], stability=stability)).state_dict()

    plain, other = build(Stability()), build(CASES[name])
    removed = {key for key in plain if key not in other}
    assert removed == (set() if CASES[name].pre_norm else {"backbone.layers.3.norm.weight", "mtp.layers.0.norm.weight"})
    assert all(torch.equal(plain[key], other[key]) for key in plain.keys() - removed)


def test_the_default_adds_nothing():
    assert not [
        name
        for name in HybridLM(VARIANTS["mtp"]).state_dict()
        if any(part in name for part in ("q_norm", "k_norm", "v_norm", "output_norm", "layer_scale", "spectrum"))
    ]


@pytest.mark.parametrize("name", ["base", "everything"])
def test_added_parameters_are_never_decayed(name):
    """The optimizer decays what has two axes or more."""
    plain = {key for key, _ in HybridLM(VARIANTS["mtp"]).named_parameters()}
    model = HybridLM(replace(VARIANTS["mtp"], stability=CASES[name]))
    assert all(p.ndim < 2 for key, p in model.named_parameters() if key not in plain)


def test_neutral_values_are_the_plain_model():
    plain = excite(HybridLM(CONFIG)).eval()
    neutral = HybridLM(replace(CONFIG, stability=Stability(inverse_temperature=1.0, layer_scale=1.0))).eval()
    neutral.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(neutral(tokens()), plain(tokens()))
    loose = HybridLM(replace(CONFIG, stability=Stability(soft_cap=1e6, soft_clip=(0.0, 1.0)))).eval()
    loose.load_state_dict(plain.state_dict())
    torch.testing.assert_close(loose(tokens()), plain(tokens()), rtol=1e-5, atol=1e-5)


def test_scores_of_normed_heads_are_bounded_whatever_the_projections():
    layer = make_layer("*", replace(CONFIG, stability=Stability(qk_norm=True)))
    nn.init.normal_(layer.mixer.q_proj.weight, std=100)
    nn.init.normal_(layer.mixer.k_proj.weight, std=100)
    x = torch.randn(1, 30, 64)
    q = layer.mixer.q_norm(layer.mixer.q_proj(x).unflatten(-1, (4, 16)))
    k = layer.mixer.k_norm(layer.mixer.k_proj(x).unflatten(-1, (2, 16)))
    scores = torch.einsum("bthk,bsgk->bhgts", q, k) / 4
    assert scores.abs().max() <= math.sqrt(16) * (1 + 1e-5)
    assert scores.abs().max() > 1


def test_remembered_keys_and_values_are_normed():
    layer = excite(make_layer("*", replace(CONFIG, stability=EXTRAS["per_head"])))
    state = layer.new_state(1, torch.float32)
    x = torch.randn(1, 5, 64)
    layer(x, None, state)
    k = layer.mixer.k_norm(layer.mixer.k_proj(layer.norm(x)).unflatten(-1, (2, 16)))
    torch.testing.assert_close(state._keys[:, :, :5], k.transpose(1, 2))


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_sigma_follows_the_largest_singular_value(shape):
    torch.manual_seed(0)
    layer = SigmaLinear(*shape[::-1])
    layer.initialise(0.1, 4)

    def effective() -> float:
        return float(torch.linalg.matrix_norm(layer.spectrum(layer.weight).detach(), 2))

    assert effective() == pytest.approx(1, rel=0.1)
    with torch.no_grad():
        layer.weight += 0.1 * torch.randn(shape)
    for _ in range(100):
        advance(layer)
    assert effective() == pytest.approx(1, rel=1e-3)
    x = torch.randn(3, shape[1])
    with torch.no_grad():
        layer.spectrum.gain.fill_(2.5)
        expected = 2.5 * (x @ layer.weight.mT) / torch.linalg.matrix_norm(layer.weight, 2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-3, atol=1e-3)
    layer.weight.data.zero_()
    assert torch.isfinite(layer(x)).all()


def test_only_advance_moves_the_singular_vectors():
    model = make("mtp", stability=Stability(sigma_reparam=True)).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith((".u", ".v"))}
    assert len(before) == 2 * (2 * 3 + 4 * 2 + (2 + 2 + 2) * 4)  # M, *, and E with those of the prediction block
    model.checkpoint_layers = True
    for _ in range(2):
        model(tokens()).sum().backward()
    assert all(torch.equal(model.get_buffer(name), buffer) for name, buffer in before.items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    advance(model)
    assert not any(torch.equal(model.get_buffer(name), buffer) for name, buffer in before.items())


@pytest.mark.parametrize("variant", ["dense", "moe", "mtp"])
def test_folding_sigma_changes_no_bit(variant):
    model = make(variant, stability=Stability(sigma_reparam=True))
    before = model(tokens())
    fold(model)
    assert torch.equal(model(tokens()), before)
    assert model.state_dict().keys() == HybridLM(VARIANTS[variant]).state_dict().keys()


@pytest.mark.parametrize("output_norm", [False, True])
@pytest.mark.parametrize("variant", ["dense", "moe", "mtp"])
def test_folding_everything_leaves_the_model_of_the_folded_config(variant, output_norm):
    stability = replace(CASES["everything"], output_norm=output_norm)
    model = make(variant, stability=stability)
    before = model(tokens())
    fold(model)
    torch.testing.assert_close(model(tokens()), before, rtol=2e-5, atol=2e-5)
    folded = HybridLM(replace(VARIANTS[variant], stability=stability.folded())).eval()
    folded.load_state_dict(model.state_dict())
    assert torch.equal(folded(tokens()), model(tokens()))


def test_a_stable_model_costs_nothing_on_the_meta_device():
    with torch.device("meta"):
        model = HybridLM(replace(VARIANTS["mtp"], stability=CASES["everything"]))
    assert all(tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.parametrize("clip", [(0.01, 1.03), (-0.03, 0.99)])
def test_a_clip_that_would_show_hidden_tokens_is_refused(clip):
    with pytest.raises(ConfigError, match="soft_clip"):
        Stability(soft_clip=clip)


@pytest.mark.parametrize("name", CASES)
def test_settings_survive_a_file(name):
    assert check(CASES[name]) == CASES[name]
    assert parse(Stability, to_data(CASES[name]), "file") == CASES[name]


@pytest.mark.parametrize("field", ["soft_cap", "inverse_temperature", "layer_scale"])
def test_values_that_make_no_sense_are_refused(field):
    with pytest.raises(ConfigError, match=field):
        check(replace(Stability(), **{field: 0.0}))
