"""Experts in few bits are linear layers in few bits, one after the other, over the tokens sent to each."""

import pytest
import torch

from seqloom.nn.moe import Experts
from seqloom.numerics.place import Clock, Place, events
from seqloom.numerics.recipes import PRODUCTS
from seqloom.ops.experts import experts_reference
from seqloom.ops.quantized_experts import quantized_experts
from seqloom.ops.quantized_linear import quantized_linear

TOKENS, WIDTH, HIDDEN, EXPERTS = 19, 24, 40, 5


def case():
    """Of five experts the last one has no tokens."""
    torch.manual_seed(0)
    x = torch.randn(TOKENS, WIDTH).bfloat16()
    chosen = torch.stack([torch.randperm(EXPERTS - 1)[:2] for _ in range(TOKENS)])
    up, down = torch.randn(EXPERTS, HIDDEN, WIDTH), torch.randn(EXPERTS, WIDTH, HIDDEN)
    return x, chosen, torch.rand(TOKENS, 2), up / WIDTH**0.5, down / HIDDEN**0.5


def run(form, name: str, seed: int = 0):
    """The result and the gradients of x, weights, up and down."""
    x, chosen, weights, up, down = case()
    leaves = [each.requires_grad_() for each in (x, weights, up, down)]
    places = {leaf: Place(leaf, Clock(seed)) for leaf in ("up_proj", "down_proj")}
    y = form(x, chosen, weights, up, down, PRODUCTS[name], places)
    torch.manual_seed(1)
    y.backward(torch.randn(TOKENS, WIDTH).bfloat16())
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def one_by_one(x, chosen, weights, up, down, how, places):
    """As the sentence above reads."""
    total = torch.zeros(TOKENS, WIDTH)
    for e in range(EXPERTS):
        rows, slots = (chosen == e).nonzero(as_tuple=True)
        if len(rows):
            hidden = quantized_linear(x[rows], up[e], how, places["up_proj"].of(e)).relu().square()
            y = quantized_linear(hidden, down[e], how, places["down_proj"].of(e))
            total = total.index_add(0, rows, y.float() * weights[rows, slots, None])
    return total.bfloat16()


@pytest.mark.parametrize("name", ["fp8", "fp8_blockwise", "nvfp4", "mor_tensor"])
def test_every_expert_is_two_quantized_layers(name: str):
    for found, expected in zip(run(quantized_experts, name), run(one_by_one, name), strict=True):
        torch.testing.assert_close(found.float(), expected.float(), rtol=2**-7, atol=2**-7)  # orders of BF16 sums


def test_they_stay_near_the_experts_of_full_width():
    def exact(x, chosen, weights, up, down, how, places):
        return experts_reference(x, chosen, weights, up.bfloat16(), down.bfloat16())

    for found, expected in zip(run(quantized_experts, "fp8"), run(exact, "fp8"), strict=True):
        assert (found - expected).norm() < 0.12 * expected.norm()


def test_an_idle_expert_learns_nothing_and_scales_are_of_one_expert():
    x, chosen, weights, up, down = case()
    _, _, _, dup, ddown = run(quantized_experts, "nvfp4")
    assert not dup[-1].any()
    assert not ddown[-1].any()
    assert all(dup[e].any() for e in range(EXPERTS - 1))
    places = {leaf: Place(leaf, Clock()) for leaf in ("up_proj", "down_proj")}

    def alone(factor: float):
        scaled = up.clone()
        scaled[0] *= factor
        y = quantized_experts(x, chosen, weights, scaled, down, PRODUCTS["fp8"], places)
        return y[(chosen != 0).all(1)]

    assert torch.equal(alone(1.0), alone(1e4))  # another expert's largest weight moves no scale here


def test_no_tokens_and_counts_of_all_experts():
    module = Experts(EXPERTS, WIDTH, HIDDEN)
    x, chosen, weights, up, down = case()
    module.up_proj.data, module.down_proj.data = up, down
    module.format, module.products = "mor_tensor", PRODUCTS["mor_tensor"]
    module.places = {leaf: Place(leaf, Clock()) for leaf in module.hidden_matrices}
    module(x.requires_grad_(), chosen, weights).sum().backward()
    assert {sum(kinds.values()) for kinds in events(module).values()} == {EXPERTS - 1}
    y = module(x[:0], chosen[:0], weights[:0])
    y.sum().backward()
    assert y.shape == (0, WIDTH)
