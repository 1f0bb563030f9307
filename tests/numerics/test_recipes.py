"""Which layer gets which format: counts of kept blocks, exceptions, the order of rules, and what is refused."""

from typing import Any

import pytest
import torch
from torch import nn

from seqloom.core.config import parse, to_data
from seqloom.core.errors import ConfigError
from seqloom.nn.linear import Linear
from seqloom.nn.lora import Factors, attach
from seqloom.numerics.decision_table import decision_lines
from seqloom.numerics.precision import PrecisionConfig, PrecisionRule, apply_precision, describe_precision
from seqloom.numerics.recipes import PRESETS, PRODUCTS, Fp8Options, MorOptions, Nvfp4Options
from seqloom.systems.hybrid_lm.recipes import tiny


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Blocks M-M*EME, LatentMoE, a prediction block of *E; without memory."""
    with torch.device("meta"):
        return tiny().model.build()


def table(model: nn.Module, recipe: str, **settings: Any) -> dict[str, str]:
    return dict(apply_precision(model, PrecisionConfig(recipe=recipe, activations="bf16", **settings)))


def blocks_of(found: dict[str, str], format: str) -> set[int]:
    return {int(name.split(".")[2]) for name, each in found.items() if each == format}


@pytest.mark.parametrize(
    ("recipe", "format", "blocks"),
    [
        ("fp8_nemotron_h", "fp8", {2, 3, 4}),
        ("fp8_blockwise", "fp8_blockwise", {2, 3, 4}),
        ("nvfp4", "nvfp4", set(range(6))),
        ("mxfp4", "mxfp4", set(range(6))),
        ("mxfp8", "mxfp8", set(range(7))),
        ("mor_tensor", "mor_tensor", set(range(7))),
    ],
)
def test_a_recipe_keeps_its_blocks(model: nn.Module, recipe: str, format: str, blocks: set[int]):
    found = table(model, recipe)
    assert blocks_of(found, format) == blocks
    others = {name: each for name, each in found.items() if each != format}
    assert set(others.values()) == {"bf16"}
    assert {"(model)", "lm_head", "mtp", "mtp.layers.0.eh_proj"} <= others.keys()


def test_the_last_fifteen_per_cent_as_published():
    """8 of 52 blocks; of 88 Super keeps 14 by its own list, and 15 % are 13."""
    assert [PRESETS["nvfp4"].kept(blocks)[1] for blocks in (1, 7, 52, 62, 88)] == [1, 1, 8, 9, 13]


def test_the_mix_of_super(model: nn.Module):
    found = table(model, "nvfp4_super")
    assert found["backbone.layers.0.mixer.in_proj"] == "nvfp4"
    assert found["backbone.layers.0.mixer.out_proj"] == "mxfp8"
    assert found["backbone.layers.1.mixer.up_proj"] == "nvfp4"
    assert {found[f"backbone.layers.3.mixer.{leaf}_proj"] for leaf in "qkvo"} == {"bf16"}
    assert {found[f"backbone.layers.4.mixer.{leaf}"] for leaf in ("experts", "shared_experts.up_proj")} == {"nvfp4"}
    assert found["backbone.layers.4.mixer.fc1_latent_proj"] == "bf16"
    assert found["backbone.layers.6.mixer.experts"] == "bf16"


def test_rules_of_the_user_come_first(model: nn.Module):
    rules = (
        PrecisionRule(modules="backbone.layers.0.*", format="bf16"),
        PrecisionRule(modules="mtp.*", format="fp8"),
        PrecisionRule(modules="*", format="mxfp8"),
    )
    found = table(model, "nvfp4", rules=rules, keep_last=0)
    assert found["backbone.layers.0.mixer.in_proj"] == "bf16"
    assert found["mtp.layers.1.mixer.experts"] == "fp8"
    assert found["backbone.layers.6.mixer.experts"] == "mxfp8"
    assert found["lm_head"] == found["(model)"] == "bf16"  # which cannot multiply in few bits


def test_applying_again_leaves_nothing_of_the_recipe_before(model: nn.Module):
    names = set(model.state_dict())
    table(model, "nvfp4")
    assert model.get_submodule("backbone.layers.0.mixer.in_proj").products is not None
    found = apply_precision(model, PrecisionConfig(activations="fp32"))
    assert set(found.values()) == {"fp32"}
    assert not any(getattr(module, "products", None) or getattr(module, "places", None) for module in model.modules())
    assert set(model.state_dict()) == names


def test_the_table_is_told_by_kind_of_layer(model: nn.Module):
    lines = decision_lines(table(model, "nvfp4_super"))
    found = [" ".join(line.split()) for line in lines]
    assert {"(model) bf16", "lm_head bf16", "mtp.layers.*.eh_proj bf16 0"} <= set(found)
    assert "backbone.layers.*.mixer.in_proj nvfp4 0 2 5" in found
    assert "backbone.layers.*.mixer.out_proj mxfp8 0 2 5" in found
    assert [line for line in found if ".mixer.experts " in line] == [
        "backbone.layers.*.mixer.experts nvfp4 4", "backbone.layers.*.mixer.experts bf16 6",
        "mtp.layers.*.mixer.experts bf16 1",
    ]  # fmt: skip
    layers = {f"layers.{n}.up_proj": "fp8" for n in (0, 1, 2, 4)}
    assert decision_lines(layers) == ["layers.*.up_proj  fp8  0-2 4"]


def test_the_share_of_what_is_kept_is_that_of_the_shapes():
    model = nn.Module()
    model.layers = nn.ModuleList([Linear(32, 64), Linear(64, 32), Linear(20, 32)])
    apply_precision(model, PrecisionConfig(recipe="nvfp4", activations="bf16", keep_first=1, keep_last=0))
    text = describe_precision(model)
    assert "1 in bf16, 2 in nvfp4" in text
    assert f"{2048 / (2048 + 2048 + 640):.1%}" in text
    assert "1 with sizes padded" in text
    apply_precision(model, PrecisionConfig(activations="bf16"))
    assert describe_precision(model) == ""


def test_adapters_compute_as_the_model_does(model: nn.Module):
    adapted = tiny().model.build()
    attach(adapted, ["backbone.layers.0.mixer.in_proj"], Factors(rank=2, scale=1.0))
    found = table(adapted, "nvfp4")
    assert found["backbone.layers.0.mixer.in_proj"] == "bf16"
    assert found["backbone.layers.0.mixer.out_proj"] == "nvfp4"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"recipe": "bf16", "nvfp4": Nvfp4Options(hadamard=False)}, "nvfp4.hadamard"),
        ({"recipe": "nvfp4", "fp8": Fp8Options(gradient="e5m2")}, "fp8.gradient"),
        ({"recipe": "mor_tensor", "mor": MorOptions(partition="channel")}, "mor.partition"),
        ({"recipe": "mor_subtensor", "mor": MorOptions(nvfp4_threshold=0.1)}, "mor.nvfp4_threshold"),
        ({"recipe": "mor_subtensor", "mor": MorOptions(three_way=True, threshold=0.1)}, "mor.threshold"),
        ({"recipe": "nvfp4", "nvfp4": Nvfp4Options(sr_bits=24, stochastic_gradients=False)}, "sr_bits"),
        ({"recipe": "plain", "switch_at": 0.5}, "switch_at"),
        ({"recipe": "nvfp4", "switch": "forward"}, "switch"),
        ({"recipe": "bf16", "keep_last": 2}, "keep_last"),
        ({"recipe": "bf16", "hardware": "require"}, "hardware"),
        ({"recipe": "bf16", "activations": "fp32"}, "activations"),
    ],
)
def test_a_setting_without_effect_is_refused(settings: dict[str, Any], named: str):
    with pytest.raises(ConfigError, match=named):
        PrecisionConfig(**settings)


def test_a_recipe_that_would_quantize_nothing_is_refused(model: nn.Module):
    with pytest.raises(ConfigError, match=r"of 7 blocks it keeps the first 4 and the last 3 .*keep_first"):
        table(model, "nvfp4", keep_first=4, keep_last=3)
    with pytest.raises(ConfigError, match="cannot multiply in so few bits"):
        table(model, "plain", rules=(PrecisionRule(modules="lm_head", format="fp8"),))


def test_every_recipe_goes_through_a_file():
    for recipe in (*PRESETS, "bf16", "plain"):
        config = PrecisionConfig(recipe=recipe)
        assert parse(PrecisionConfig, to_data(config), "file") == config
    assert set(PRODUCTS) == {preset.format for preset in PRESETS.values()}
