"""Parity with transformers where it is not installed: what it once computed is kept in small files (`make_golden.py`).

Each file is turned into a model folder, so that names, layout and configuration are tested on the way.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import seqloom
from reference_hybrid import ReferenceHybrid
from seqloom.nn.state import MambaState
from seqloom.systems.hybrid_lm.model import HybridLM

FILES = sorted((Path(__file__).parent / "golden").glob("*.safetensors"))
TOLERANCE = 2e-5


class Golden(NamedTuple):
    model: HybridLM
    seen: dict[str, Tensor]
    folder: Path
    weights: dict[str, Tensor]
    metadata: dict[str, str]


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def golden(request, tmp_path_factory):
    with safe_open(request.param, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    weights = {name.removeprefix("weights/"): t for name, t in tensors.items() if name.startswith("weights/")}
    seen = {name.removeprefix("seen/"): t for name, t in tensors.items() if name.startswith("seen/")}
    folder = tmp_path_factory.mktemp(request.param.stem)
    (folder / "config.json").write_text(metadata["config"])
    save_file({name: tensor.float() for name, tensor in weights.items()}, folder / "model.safetensors")
    return Golden(seqloom.load(folder).eval(), seen, folder, weights, metadata)


def close(found, wanted, tolerance=TOLERANCE, relative=0.0):
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=relative)


@pytest.fixture(scope="module")
def walk(golden):
    """Our pass over the ids: logits, stream after every layer at the last places, choices of every router."""
    layers: list[Tensor] = []
    chosen: list[Tensor] = []
    handles = []
    for layer in golden.model.backbone.layers:
        handles.append(layer.register_forward_hook(lambda _, __, out: layers.append(out[0][:, -4:])))
        if hasattr(layer.mixer, "gate"):
            hook = layer.mixer.gate.register_forward_hook(lambda _, __, out: chosen.append(out[0].sort(-1).values))
            handles.append(hook)
    logits = golden.model(golden.seen["ids"])
    for handle in handles:
        handle.remove()
    return logits, layers, chosen


def test_there_is_a_file_for_every_variant_and_it_names_its_origin(golden):
    assert len(FILES) == 6
    assert golden.metadata.keys() == {"config", "seed", "torch", "transformers"}


def test_logits_layers_and_choices(golden, walk):
    logits, layers, chosen = walk
    close(logits, golden.seen["logits"])
    close(torch.stack(layers), golden.seen["layers"], relative=1e-5)
    if chosen:
        assert torch.equal(torch.stack(chosen).view(golden.seen["chosen"].shape), golden.seen["chosen"].long())


def test_gradients(golden, walk):
    ids, parameters = golden.seen["ids"], dict(golden.model.named_parameters())
    loss = F.cross_entropy(walk[0][:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    close(loss, golden.seen["loss"])
    slopes: dict[str, Any] = {}
    gradients = torch.autograd.grad(loss, parameters.values(), allow_unused=True, retain_graph=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            assert name.startswith("mtp.")
        elif name.endswith((".experts.up_proj", ".experts.down_proj")):
            stem, leaf = name.rsplit(".", 1)
            slopes |= {f"{stem}.{expert}.{leaf}.weight": part for expert, part in enumerate(gradient)}
        else:
            slopes[name] = gradient
    wanted = golden.seen["gradients"]
    assert len(slopes) == len(wanted)
    for name, (norm, product) in zip(sorted(slopes), wanted.tolist(), strict=True):
        weight = golden.weights[name].float()
        assert float(slopes[name].norm()) == pytest.approx(norm, rel=1e-5), name
        assert abs(float((slopes[name] * weight).sum()) - product) <= 1e-5 * norm * float(weight.norm()), name


@torch.no_grad()
def test_states_and_what_comes_after_them(golden):
    ids, states = golden.seen["ids"], golden.model.new_states(2)
    golden.model(ids[:, :20], states=states)
    mamba = [state for state in states if isinstance(state, MambaState)]
    close(torch.stack([state.ssm for state in mamba]), golden.seen["ssm"], relative=1e-5)
    close(torch.stack([state.window.mT for state in mamba]), golden.seen["window"])
    steps = [golden.model(ids[:, t : t + 1], states=states) for t in range(20, 28)]
    close(torch.cat(steps, dim=1), golden.seen["logits"][:, 20:28])


@torch.no_grad()
def test_looking_ahead(golden):
    assert (golden.model.mtp is not None) == ("ahead" in golden.seen)
    if golden.model.mtp is not None:
        ids = golden.seen["ids"]
        ahead, _ = golden.model.look_ahead(golden.model.hidden(ids)[0], ids, None, 2)
        close(torch.stack(ahead)[:, :, -16:], golden.seen["ahead"])


def test_the_reference_agrees_too(golden):
    reference = ReferenceHybrid.open(golden.folder)
    ids = golden.seen["ids"][0].tolist()
    close(torch.from_numpy(reference.run(ids).logits).float(), golden.seen["logits"][0])


@torch.no_grad()
def test_stored_in_bf16_it_is_the_same_model(golden, tmp_path):
    """The folder of half the size holds the very same numbers, and keeps FP32 where it must."""
    save_file(golden.weights, tmp_path / "model.safetensors")
    fields = json.loads(golden.metadata["config"])
    (tmp_path / "config.json").write_text(json.dumps(fields | {"torch_dtype": "bfloat16"}))
    narrow = seqloom.load(tmp_path)
    wide = dict(golden.model.state_dict())
    for name, tensor in narrow.state_dict().items():
        keeps = name.endswith(("A_log", ".D", "dt_bias", "e_score_correction_bias"))
        assert tensor.dtype == (torch.float32 if keeps else torch.bfloat16)
        assert torch.equal(tensor.float(), wide[name])
