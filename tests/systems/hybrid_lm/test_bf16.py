"""BF16 against FP32: near where routing is the same, and the parts that must stay FP32 do stay so.

Rounding makes routers choose other experts now and then, after which everything differs. So the routing of the FP32 run
is played back, and what the BF16 routers would have chosen is judged apart: only near ties may be decided otherwise.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import seqloom
from seqloom.nn.moe import MoE
from seqloom.numerics.precision import PrecisionConfig, apply_precision
from tiny_models import excite, make, tokens

FP32_ONLY = ("A_log", ".D", "dt_bias", "e_score_correction_bias")


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def by_recipe(model):
    """FP32 masters, computing in BF16."""
    apply_precision(model, PrecisionConfig(activations="bf16"))
    return model


def through_a_folder(model, folder):
    """The model as it comes out of a folder that stores BF16."""
    model.write_folder(folder)
    stored = load_file(folder / "model.safetensors")
    narrow = {name: t if name.endswith(FP32_ONLY) else t.bfloat16() for name, t in stored.items()}
    save_file(narrow, folder / "model.safetensors")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"torch_dtype": "bfloat16", "dtype": "bfloat16"}))
    return seqloom.load(folder).eval()


@pytest.fixture(params=["recipe", "folder"])
def in_bf16(request, tmp_path):
    return by_recipe if request.param == "recipe" else lambda model: through_a_folder(model, tmp_path)


def routers(model):
    return [layer.mixer.gate for layer in model.backbone.layers if isinstance(layer.mixer, MoE)]


def recorded(model, ids):
    """Logits, and the output of every router."""
    seen = []
    handles = [gate.register_forward_hook(lambda _, __, out: seen.append(out)) for gate in routers(model)]
    logits = model(ids)
    for handle in handles:
        handle.remove()
    return logits, seen


def replayed(model, ids, routing):
    """Logits with routing played back, and the choices that routers would have made."""
    rest, own = iter(routing), []

    def play(_, __, out):
        own.append(out[0])
        return next(rest)

    handles = [gate.register_forward_hook(play) for gate in routers(model)]
    logits = model(ids)
    for handle in handles:
        handle.remove()
    return logits, own


def distance(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("variant", ["dense", "moe", "latent"])
def test_logits_stay_near_fp32_and_only_near_ties_are_routed_otherwise(variant, in_bf16):
    ids = tokens(batch=8, length=64)
    model = make(variant)
    wanted, routing = recorded(model, ids)
    logits, own = replayed(in_bf16(model), ids, routing)
    assert logits.dtype == torch.float32
    assert 1e-3 < distance(logits, wanted) <= 3e-2
    for gate, (chosen, _, scores), would in zip(routers(model), routing, own, strict=True):
        best = (scores + gate.e_score_correction_bias).topk(gate.top_k + 1).values
        gap = best[:, -2] - best[:, -1]
        differs = (chosen.sort(-1).values != would.sort(-1).values).any(-1)
        assert differs.float().mean() <= 0.03
        assert (gap[differs] <= 0.02).all()


@pytest.mark.parametrize("variant", ["dense", "latent"])
def test_no_further_from_fp32_than_transformers(variant, tmp_path):
    pytest.importorskip("transformers")
    from transformers_oracle import open_oracle

    ids = tokens()
    model = make(variant)
    wanted, routing = recorded(model, ids)
    model.write_folder(tmp_path)
    theirs = open_oracle(tmp_path, torch.bfloat16)
    rest = iter(routing)

    def play(_, __, out):
        chosen, weights, _ = next(rest)
        return out[0], weights, chosen

    for layer in theirs.model.layers:
        if layer.block_type == "moe":
            layer.mixer.gate.register_forward_hook(play)
    error = distance(theirs(ids, use_cache=False).logits, wanted)
    ours, _ = replayed(through_a_folder(model, tmp_path), ids, routing)
    assert distance(ours, wanted) <= 1.5 * error


@pytest.mark.parametrize("leaf", FP32_ONLY)
def test_a_change_too_small_for_bf16_still_counts(leaf, in_bf16):
    """Two values that BF16 cannot tell apart must not give the same logits."""
    model = make("moe")
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    results = []
    for change in (0.0, 1.0):
        for name, tensor in named.items():
            if not name.endswith(leaf):
                continue
            if leaf == "e_score_correction_bias":  # around where trained models have it, with steps of 0.25 in BF16
                values = 60 + 0.015 * change * torch.arange(8)
            else:
                values = torch.full_like(tensor, 1 + change / 512)
            assert values.bfloat16().unique().numel() == 1
            tensor.copy_(values)
        results.append(in_bf16(model)(tokens()))
    assert not torch.equal(*results)


def test_routers_compute_in_fp32(in_bf16):
    model = in_bf16(make("latent"))
    seen = []
    for gate in routers(model):
        gate.register_forward_hook(lambda gate, given, out: seen.append((gate, given[0], out)))
    model(tokens())
    assert len(seen) == 3
    for gate, x, (chosen, weights, scores) in seen:
        exact = torch.sigmoid(x.double() @ gate.weight.double().T)
        torch.testing.assert_close(scores.double(), exact, atol=1e-6, rtol=0)
        best = (scores + gate.e_score_correction_bias).topk(2).indices
        assert torch.equal(best, chosen)
        wanted = scores.gather(1, best)
        torch.testing.assert_close(weights, 2.5 * wanted / wanted.sum(1, keepdim=True), atol=1e-6, rtol=0)


def test_states_of_the_scan_stay_fp32(in_bf16):
    model = in_bf16(excite(make("dense")))
    states = model.new_states(2)
    model(tokens(), states=states)
    for letter, state in zip(model.config.pattern, states, strict=True):
        if letter == "M":
            assert (state.ssm.dtype, state.window.dtype) == (torch.float32, torch.bfloat16)
        elif letter == "*":
            assert state._keys.dtype == torch.bfloat16
