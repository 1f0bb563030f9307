"""Folders in the public layout: what is written is what is read, and every fault has a name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import seqloom
from seqloom.core.errors import CheckpointError, ConfigError
from seqloom.systems.hybrid_lm.folder import config_from_public, public_config
from tiny_models import VARIANTS, make, tokens


@pytest.fixture
def folder(tmp_path):
    make("mtp").write_folder(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", VARIANTS)
def test_written_and_read_back_bit_for_bit(name, tmp_path):
    model = make(name)
    model.write_folder(tmp_path)
    back = seqloom.load(tmp_path)
    assert back.config.pattern == model.config.pattern
    for (key, a), (other, b) in zip(model.state_dict().items(), back.state_dict().items(), strict=True):
        assert key == other
        assert torch.equal(a, b)
    with torch.no_grad():
        assert torch.equal(model(tokens()), back(tokens()))


def test_expert_tensors_have_public_names(folder):
    names = load_file(folder / "model.safetensors").keys()
    assert "backbone.layers.1.mixer.experts.7.up_proj.weight" in names
    assert "backbone.layers.1.mixer.gate.e_score_correction_bias" in names
    assert "mtp.layers.0.eh_proj.weight" in names
    assert "mtp.layers.1.final_layernorm.weight" in names
    assert len([name for name in names if name.startswith("mtp.")]) == 32


@pytest.mark.parametrize("name", VARIANTS)
def test_every_spelling_of_the_pattern_is_read(name):
    fields = public_config(VARIANTS[name])
    assert config_from_public(fields, "config.json").pattern == VARIANTS[name].pattern
    listed = {key: value for key, value in fields.items() if key != "hybrid_override_pattern"}
    assert config_from_public(listed, "config.json").pattern == VARIANTS[name].pattern


@pytest.fixture
def sharded(folder, tmp_path_factory):
    """The same model in BF16 and two files."""
    target = tmp_path_factory.mktemp("sharded")
    tensors = load_file(folder / "model.safetensors")
    narrow = {k: v if "bias" in k or k.endswith(("A_log", ".D")) else v.bfloat16() for k, v in tensors.items()}
    names = sorted(narrow)
    homes = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(homes.values()):
        save_file({name: narrow[name] for name in names if homes[name] == file}, target / file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    fields = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(fields | {"torch_dtype": "bfloat16"}))
    return target


def test_sharded_and_bf16_folders_load(sharded):
    model = seqloom.load(sharded)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.backbone.layers[0].mixer.A_log.dtype == torch.float32
    assert torch.isfinite(model(tokens())).all()


def test_damage_in_a_shard_is_named(sharded):
    shard = sharded / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    tensors = load_file(shard)
    missing = next(iter(tensors))
    save_file({name: tensor for name, tensor in tensors.items() if name != missing}, shard)
    with pytest.raises(CheckpointError, match=f"{shard.name}.*{missing}"):
        seqloom.load(sharded)
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=f"{shard.name}: damaged"):
        seqloom.load(sharded)
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        seqloom.load(sharded)


def spoil(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("lm_head.weight"), "missing: lm_head.weight"),
        (lambda t: t.update({"extra.weight": torch.ones(1)}), "unknown: extra.weight"),
        (lambda t: t.update({"lm_head.weight": torch.ones(3, 64)}), r"'lm_head.weight' has shape \(3, 64\)"),
    ],
)
def test_wrong_tensors_are_named(folder, change, told):
    spoil(folder, change)
    with pytest.raises(CheckpointError, match=told):
        seqloom.load(folder)


def test_damage_is_named(folder, tmp_path_factory):
    with pytest.raises(CheckpointError, match="does not exist"):
        seqloom.load(folder / "absent")
    for name, content, told in [
        ("model.safetensors", b"\x00" * 100, "model.safetensors"),
        ("config.json", b"{", "not a JSON file"),
        ("config.json", b'{"model_type": "bert"}', "'bert' is not known here"),
        ("config.json", b'{"model_type": "nemotron_h"}', "hybrid_override_pattern"),
    ]:
        copy = tmp_path_factory.mktemp("damaged") / "folder"
        shutil.copytree(folder, copy)
        (copy / name).write_bytes(content)
        with pytest.raises((CheckpointError, ConfigError), match=told):
            seqloom.load(copy)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds neither"):
        seqloom.load(folder)
