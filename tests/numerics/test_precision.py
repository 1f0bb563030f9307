import pytest
import torch

from seqloom.core.errors import ConfigError
from seqloom.numerics.precision import PrecisionConfig, PrecisionRule, apply_precision
from tiny_models import make, tokens


def test_first_matching_rule_wins_and_names_never_change():
    model = make("latent")
    names = set(model.state_dict())
    rules = (
        PrecisionRule(modules="backbone.layers.0.mixer.out_proj", format="fp32"),
        PrecisionRule(modules="backbone.layers.*.mixer.*_proj", format="bf16"),
    )
    table = apply_precision(model, PrecisionConfig(activations="fp32", rules=rules))
    assert table["backbone.layers.0.mixer.out_proj"] == "fp32"
    assert table["backbone.layers.0.mixer.in_proj"] == "bf16"
    assert table["lm_head"] == "fp32"
    assert table["(model)"] == "fp32"
    assert set(model.state_dict()) == names


def test_a_rule_without_a_module_is_refused():
    rule = PrecisionRule(modules="backbone.layers.*.mixr.*", format="bf16")
    with pytest.raises(ConfigError, match="mixr"):
        apply_precision(make("dense"), PrecisionConfig(activations="fp32", rules=(rule,)))


def test_the_automatic_choice_must_be_made_first():
    with pytest.raises(ConfigError, match="auto"):
        apply_precision(make("dense"), PrecisionConfig())


def test_bf16_stays_near_fp32_and_keeps_fp32_masters():
    model = make("dense")
    with torch.no_grad():
        exact = model(tokens())
        apply_precision(model, PrecisionConfig(activations="bf16"))
        rough = model(tokens())
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() / exact.norm() < 3e-2
    assert all(p.dtype == torch.float32 for p in model.parameters())
