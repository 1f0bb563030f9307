"""Sites of a model: which there are, and products that are computed otherwise for a while."""

import pytest
import torch

from seqloom.core.errors import NumericsError
from seqloom.ops.linear import linear
from seqloom.quantize.calibrate import calibrate
from seqloom.quantize.sites import sites, through
from tiny_models import make, tokens


def test_every_matrix_product_is_a_site() -> None:
    model = make("mtp")
    found = {site.name: site for site in sites(model)}
    experts = found["backbone.layers.1.mixer.experts.down_proj"]
    assert experts.matrices.shape == (8, 24, 32)
    assert experts.group == found["backbone.layers.1.mixer.experts.up_proj"].group
    q, k, o = (found[f"backbone.layers.3.mixer.{name}_proj"] for name in "qko")
    assert q.group == k.group != o.group
    assert q.fused and not o.fused  # noqa: PT018
    wanted = {name for name, each in model.named_modules() if hasattr(each, "residual_output")}
    assert {name for name in found if ".experts." not in name} == wanted


@pytest.mark.parametrize("variant", ["dense", "latent"])
@torch.no_grad()
def test_products_pass_through_and_back(variant: str) -> None:
    model, seen = make(variant), set()

    def product(name, x, weight, matrix):
        seen.add(name)
        return linear(x, weight)

    wanted = model(tokens())
    names = [site.name for site in sites(model)]
    with through(model, names, product):
        torch.testing.assert_close(model(tokens()), wanted, atol=1e-5, rtol=0)
    assert seen == set(names)
    with through(model, ["backbone.layers.0.mixer.in_proj"], lambda name, x, weight, matrix: 0 * linear(x, weight)):
        assert not torch.allclose(model(tokens()), wanted, atol=1e-2)
    assert torch.equal(model(tokens()), wanted)


@torch.no_grad()
def test_calibration_finds_the_largest_inputs() -> None:
    model, inputs = make("moe"), {}

    def look(name):
        def hook(module, args):
            inputs[name] = max(inputs.get(name, 0.0), float(args[0].abs().max()))

        return hook

    attention = "backbone.layers.3.mixer"
    watched = (f"{attention}.q_proj", "backbone.layers.0.mixer.out_proj")
    for name in watched:
        model.get_submodule(name).register_forward_pre_hook(look(name))
    keys = []
    model.get_submodule(f"{attention}.k_proj").register_forward_hook(lambda m, x, y: keys.append(y.abs().max()))
    found = calibrate(model, sites(model), lambda: [model(tokens(seed=seed)) for seed in (1, 2)])
    assert {name: float(found.inputs[name]) for name in watched} == inputs
    assert found.inputs[f"{attention}.v_proj"] == found.inputs[f"{attention}.q_proj"]
    assert found.keys[attention] == max(keys)
    assert len(found.inputs) == len(sites(model))


def test_what_is_not_finite_is_named() -> None:
    model = make("dense")
    with torch.no_grad():
        model.backbone.layers[1].mixer.up_proj.weight[0, 0] = torch.inf
    with pytest.raises(NumericsError, match=r"layers\.1\.mixer\.down_proj: its input is not finite"):
        calibrate(model, sites(model), lambda: model(tokens()))
