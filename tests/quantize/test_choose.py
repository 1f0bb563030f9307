"""Scores against their definition, and the choice that follows from them."""

import pytest
from torch.nn import functional as F

from seqloom.core.errors import ConfigError
from seqloom.quantize.calibrate import calibrate
from seqloom.quantize.choose import choose, effective_bits, scores
from seqloom.quantize.config import REPRESENTATIONS, QuantizeConfig, bits_of
from seqloom.quantize.sites import sites
from seqloom.quantize.weights import fits, product, quantize_weights
from tiny_models import make, tokens

FORMATS = ("nvfp4", "fp8")


def silent(share: float) -> None:
    pass


@pytest.fixture(scope="module")
def scored():
    model = make("latent")
    chosen = [site for site in sites(model) if site.name != "lm_head"]
    calibration = calibrate(model, chosen, lambda: model(tokens()))
    candidates = {
        format: quantize_weights(chosen, {s.name: format for s in chosen if fits(s, format)}, "max", silent)
        for format in FORMATS
    }
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.backbone.embeddings.weight.requires_grad_(True)

    def losses():
        for seed in (1, 2):
            ids = tokens(seed=seed)
            yield F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")

    return model, chosen, calibration, candidates, scores(model, candidates, calibration, losses()), losses


def test_scores_are_gradients_times_changes(scored) -> None:
    model, _, calibration, candidates, found, losses = scored
    name = "backbone.layers.2.mixer.out_proj"
    module, kept = model.get_submodule(name), []

    def hook(module, args, y):
        y.retain_grad()
        kept.append((args[0].detach(), y))

    handle = module.register_forward_hook(hook)
    for loss in losses():
        loss.backward()
    handle.remove()
    for format in FORMATS:
        total = 0.0
        for x, y in kept:
            scheme = REPRESENTATIONS[format].activations
            change = product(x, candidates[format][name][0], scheme, calibration.inputs[name]) - y.detach()
            total += float((y.grad * change).square().sum())
        assert found[name][format] == pytest.approx(total, rel=1e-4)


def test_narrower_formats_harm_more_and_do_not_go_everywhere(scored) -> None:
    _, chosen, _, _, found, _ = scored
    assert found.keys() == {site.name for site in chosen}
    both = [by_format for by_format in found.values() if "nvfp4" in by_format]
    assert all(by_format["nvfp4"] > by_format["fp8"] > 0 for by_format in both)
    assert {name for name, by_format in found.items() if "nvfp4" not in by_format} == {  # the latent width is 24
        f"backbone.layers.{layer}.mixer.{name}"
        for layer in (1, 4, 6)
        for name in ("experts.up_proj", "fc2_latent_proj")
    }


def test_the_budget_is_met(scored) -> None:
    _, chosen, _, _, found, _ = scored
    before, least = None, None
    for budget in (16.0, 8.0, 7.0, 6.5):
        formats = choose(chosen, found, ("nvfp4", "fp8", "bf16"), budget)
        assert effective_bits(chosen, formats) <= budget
        for group in {site.group for site in chosen}:
            assert len({formats[site.name] for site in chosen if site.group == group}) == 1
        harm = sum(0 if format == "bf16" else found[name][format] for name, format in formats.items())
        assert before is None or harm > before
        before, least = harm, formats
    assert set(least.values()) >= {"nvfp4", "fp8"}
    assert set(choose(chosen, found, ("nvfp4", "fp8", "bf16"), 16.0).values()) == {"bf16"}
    with pytest.raises(ConfigError, match=r"budget_bits: 4 bits .* the layers that are not kept allow [56]\.\d+ to 16"):
        choose(chosen, found, ("nvfp4", "fp8", "bf16"), 4.0)
    with pytest.raises(ConfigError, match="budget_bits: 17 bits"):
        choose(chosen, found, ("nvfp4", "fp8", "bf16"), 17.0)


def test_bits_count_block_scales() -> None:
    assert [bits_of(format) for format in ("nvfp4", "nvfp4_w4a16", "fp8", "bf16")] == [4.5, 4.5, 8, 16]


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match="'mixed' has its formats fixed"):
        QuantizeConfig(recipe="mixed", budget_bits=6.0)
    with pytest.raises(ConfigError, match="'mse' is for NVFP4"):
        QuantizeConfig(recipe="fp8", weights="mse")
