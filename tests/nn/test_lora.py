"""Adapters against the formed matrix W + c B A, on every layer kind."""

import dataclasses

import pytest
import torch
from torch import nn

from seqloom.nn.linear import Linear
from seqloom.nn.lora import AdaptedExperts, AdaptedLinear, Factors, attach, projections
from tiny_models import VARIANTS, make, tokens

FACTORS = Factors(rank=3, scale=1.5)


def fill(model: nn.Module) -> None:
    """Make every adapter count: B leaves zero."""
    source = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_b" in name:
            parameter.data.normal_(std=0.1, generator=source)


def formed(model: nn.Module, factors: Factors) -> dict[str, torch.Tensor]:
    """W + c B A under the names of the base parameters, differentiable by A and B."""
    result = {}
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            result[f"{name}.weight"] = module.weight + factors.scale * module.lora_b @ module.lora_a
        elif isinstance(module, AdaptedExperts):
            for stack in ("up_proj", "down_proj"):
                a, b = module.adapter(stack)
                result[f"{name}.{stack}"] = getattr(module, stack) + factors.scale * b @ a
    return result


@pytest.mark.parametrize("name", ["dense", "moe", "latent"])
def test_values_and_gradients_equal_the_formed_matrices(name):
    plain, adapted = make(name), make(name)
    attach(adapted, projections(adapted), FACTORS)
    fill(adapted)
    ids = tokens()
    logits = adapted(ids)
    expected = torch.func.functional_call(plain, formed(adapted, FACTORS), (ids,))
    assert (expected - plain(ids)).abs().max() > 0.1
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)
    learning = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora" in name for name in learning)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    found, truth = (torch.autograd.grad(y, list(learning.values()), weights) for y in (logits, expected))
    for name, mine, wanted in zip(learning, found, truth, strict=True):
        assert (mine - wanted).norm() <= 1e-4 * wanted.norm(), name
        assert wanted.norm() > 0, name


@pytest.mark.parametrize("name", VARIANTS)
def test_fresh_adapters_leave_every_logit_as_it_was(name):
    model, ids = make(name), tokens()
    before, names = model(ids), set(dict(model.named_parameters()))
    attach(model, projections(model), FACTORS)
    assert torch.equal(model(ids), before)
    assert names < set(dict(model.named_parameters()))


def test_every_projection_of_every_kind_is_found():
    found = projections(make("mtp"))
    leaves = {kind: {name.rpartition("mixer.")[2] for name, p in found.items() if p.kind == kind} for kind in "ME*"}
    assert leaves == {
        "M": {"in_proj", "out_proj"},
        "*": {"q_proj", "k_proj", "v_proj", "o_proj"},
        "E": {
            *("experts.up_proj", "experts.down_proj", "shared_experts.up_proj", "shared_experts.down_proj"),
            *("fc1_latent_proj", "fc2_latent_proj"),
        },
    }
    assert {name for name, p in found.items() if p.kind == "mtp"} > {
        "mtp.layers.0.eh_proj", "mtp.layers.0.mixer.q_proj", "mtp.layers.1.mixer.experts.up_proj",
    }  # fmt: skip
    stack = found["backbone.layers.1.mixer.experts.up_proj"]
    assert (stack.copies, stack.out_width, stack.in_width, stack.routed) == (8, 32, 24, True)
    assert stack.factor_numbers(rank=3) == 8 * 3 * (32 + 24)


def test_fresh_adapters_depend_on_the_seed_alone():
    models = [make("latent") for _ in range(2)]
    for model, names in zip(models, (list(projections(models[0])), reversed(projections(models[1]))), strict=True):
        torch.manual_seed(5)
        attach(model, names, FACTORS)
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other), name


def test_one_stack_of_the_experts_alone():
    model, ids = make("moe"), tokens()
    plain = make("moe")
    attach(model, ["backbone.layers.1.mixer.experts.down_proj"], FACTORS)
    fill(model)
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert [name.rpartition(".")[2] for name in learning] == ["down_proj_lora_a", "down_proj_lora_b"]
    expected = torch.func.functional_call(plain, formed(model, FACTORS), (ids,))
    torch.testing.assert_close(model(ids), expected, atol=2e-5, rtol=0)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    base = Linear(16, 8)
    base.initialise(0.1, 1)
    layer, x = AdaptedLinear(base, dataclasses.replace(FACTORS, dropout=0.5)), torch.randn(4, 16)
    layer.lora_b.data.normal_()
    assert torch.equal(layer.eval()(x), layer(x))
    assert not torch.equal(layer.train()(x), layer(x))


def test_a_frozen_narrow_weight_is_not_kept_wide_for_the_backward_pass():
    kept: list[torch.Tensor] = []
    layer = Linear(16, 8)
    layer.initialise(0.1, 1)
    layer.weight = nn.Parameter(layer.weight.detach().bfloat16(), requires_grad=False)
    x = torch.randn(4, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = layer(x)
    assert [tensor.dtype for tensor in kept] == [torch.bfloat16]
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx, layer.weight.float().sum(0).expand(4, 16))
