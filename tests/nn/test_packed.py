"""Models whose weights are packed for serving: the products of what is stored, in the places of the plain layers."""

import pytest
import torch

from seqloom.nn.linear import Linear
from seqloom.nn.lora import Factors, attach
from seqloom.nn.moe import Experts, MoE
from seqloom.nn.packed import PackedExperts, PackedLinear, pack_linears, settle
from seqloom.ops.kernels import invariant
from seqloom.ops.packed_linear import PackedWeight, pack
from tiny_models import make, tokens

KINDS = ["int8", "fp8", "nvfp4"]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_computes_what_is_stored(kind: str) -> None:
    model, plain = make("mtp", seed=1), make("mtp", seed=1)
    formats = pack_linears(model, kind)
    assert isinstance(model.lm_head, PackedLinear)
    stacks = 0
    for name, module in plain.named_modules():
        if isinstance(module, Linear) and formats[name] != "float32":
            assert formats[name] == ("int8" if name == "lm_head" else kind)
            module.weight.copy_(pack(module.weight, formats[name]).dequantize())
        elif isinstance(module, Experts) and formats[name] == kind:
            stacks += 1
            for leaf in module.hidden_matrices:
                matrices = getattr(module, leaf)
                matrices.copy_(pack(matrices, kind).dequantize())
    assert stacks == (0 if kind == "nvfp4" else 4)  # whose inputs, 24 numbers, are no whole blocks
    torch.testing.assert_close(model(tokens()), plain(tokens()), rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", [None, "fp8", "nvfp4"])
def test_settling_moves_every_weight_and_changes_none(kind: str | None) -> None:
    model = make("moe")
    if kind is not None:
        pack_linears(model, kind)
    before, numbers = model(tokens()), {name: each.clone() for name, each in model.state_dict().items()}
    settle(model)
    assert torch.equal(model(tokens()), before)
    assert all(torch.equal(each, numbers[name]) for name, each in model.state_dict().items())
    packed = [each for module in model.modules() for each in vars(module).values() if isinstance(each, PackedWeight)]
    assert bool(packed) == (kind is not None)
    parts = [*model.parameters(), *(part for each in packed for part in (each.codes, each.scales) if part is not None)]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
    assert all(part.data_ptr() % 64 == 0 for part in parts)


def test_what_is_not_packed() -> None:
    model = make("moe")
    attach(model, ["backbone.layers.0.mixer.in_proj"], Factors(rank=2, scale=1.0))
    formats = pack_linears(model, "nvfp4")
    assert "backbone.layers.0.mixer.in_proj" not in formats
    assert formats["lm_head"] == "int8"
    assert isinstance(model.backbone.layers[1].mixer.experts, PackedExperts)
    assert model.backbone.layers[1].mixer.gate.weight.dtype == torch.float32
    again = pack_linears(model, "int8")
    assert again == {}
    assert set(pack_linears(make("dense"), "bf16").values()) == {"bfloat16"}


@torch.no_grad()
@pytest.mark.parametrize("form", ["native", "torch"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", *KINDS])
@pytest.mark.parametrize("variant", ["moe", "grouped"])
def test_no_token_sees_another_in_an_expert_layer(
    form: str, stored: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQLOOM_KERNELS", form)
    model = make(variant)
    mixer = model.backbone.layers[1].mixer
    assert isinstance(mixer, MoE)
    if stored == "bfloat16":
        pack_linears(mixer, "bf16")
    elif stored != "float32":
        pack_linears(mixer, stored)
    x = torch.randn(1, 150 if form == "native" else 20, 64, generator=torch.Generator().manual_seed(0))
    with invariant():
        y = mixer(x)[0]
        for rows in (1, 2, 7, 13):
            assert torch.equal(mixer(x[:, -rows:])[0], y[:, -rows:])
    torch.testing.assert_close(mixer(x)[0], y, rtol=1e-3, atol=1e-3)
