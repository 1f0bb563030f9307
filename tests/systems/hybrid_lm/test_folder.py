"""Folders in the public layout: what is written is what is read, and every fault has a name."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import seqloom
from seqloom.core.checkpoint.manifest import write_manifest
from seqloom.core.errors import CheckpointError, ConfigError
from seqloom.systems.hybrid_lm.folder import read_weights
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


@pytest.fixture
def sharded(folder, tmp_path_factory):
    """The same model in BF16 and two files."""
    target = tmp_path_factory.mktemp("sharded")
    tensors = load_file(folder / "model.safetensors")
    narrow = {k: v if k.endswith("correction_bias") else v.bfloat16() for k, v in tensors.items()}
    names = sorted(narrow)
    homes = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(homes.values()):
        save_file({name: narrow[name] for name in names if homes[name] == file}, target / file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    fields = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(fields | {"torch_dtype": "bfloat16", "dtype": "bfloat16"}))
    return target


def test_sharded_and_bf16_folders_load(sharded):
    model = seqloom.load(sharded)
    assert model.lm_head.weight.dtype == torch.bfloat16
    mixer = model.backbone.layers[0].mixer
    assert mixer.A_log.dtype == mixer.D.dtype == mixer.dt_bias.dtype == torch.float32
    assert model.backbone.layers[1].mixer.gate.e_score_correction_bias.dtype == torch.float32
    assert torch.isfinite(model(tokens())).all()


def test_a_narrow_model_is_written_as_narrow(sharded, tmp_path):
    model = seqloom.load(sharded)
    model.write_folder(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    stored = load_file(tmp_path / "model.safetensors")
    assert {name.rsplit(".", 1)[1] for name, tensor in stored.items() if tensor.dtype == torch.float32} == {
        "A_log", "D", "dt_bias", "e_score_correction_bias",
    }  # fmt: skip
    assert_equal(seqloom.load(tmp_path), model)


def test_weights_are_read_into_a_model_that_is_there(sharded):
    model = make("mtp", seed=5)
    before = model.lm_head.weight.data_ptr()
    read_weights(model, sharded)
    assert model.lm_head.weight.data_ptr() == before
    assert model.lm_head.weight.dtype == torch.float32
    loaded = seqloom.load(sharded)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name].float()), name


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


# ---- layouts -------------------------------------------------------------------------------------------------------


def assert_equal(model, other):
    for (name, a), (twin, b) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert name == twin
        assert a.dtype == b.dtype
        assert torch.equal(a, b), name


def renamed(change):
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


def stacked(up, down, turn=False):
    """Expert matrices under two names, in one tensor a layer."""

    def restack(tensors):
        kept = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
        for prefix in sorted({name.split(".experts.")[0] for name in tensors if ".experts." in name}):
            for name, matrix in ((up, "up_proj"), (down, "down_proj")):
                parts = [tensors[f"{prefix}.experts.{e}.{matrix}.weight"] for e in range(8)]
                stack = torch.stack([part.T if turn else part for part in parts])
                kept[f"{prefix}.experts.{name}"] = stack.contiguous()
        return kept

    return restack


LAYOUTS = {
    "library_prefix": renamed(lambda name: name.replace("backbone.", "model.", 1)),
    "very_old": renamed(lambda name: name.replace("backbone.embeddings.", "backbone.embedding.")),
    "stacked": stacked("up_proj", "down_proj"),
    "stacked_weights": stacked("up_proj.weight", "down_proj.weight"),
    "stacked_and_turned": stacked("up_proj", "down_proj", turn=True),
    "automodel": stacked("gate_and_up_projs", "down_projs", turn=True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_model(layout, folder):
    model = seqloom.load(folder)
    tensors = LAYOUTS[layout](load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors")
    assert_equal(seqloom.load(folder), model)


@pytest.mark.parametrize("turn", [False, True])
def test_square_stacks_need_a_note(turn, folder):
    """Where both widths are equal, only the header can tell which axis is which."""
    square = dataclasses.replace(VARIANTS["mtp"].moe, latent_width=32)
    model = make("mtp", moe=square)
    model.write_folder(folder)
    tensors = stacked("up_proj", "down_proj", turn)(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="stacks square matrices, and nothing says"):
        seqloom.load(folder)
    note = {"expert_axes": "expert in out" if turn else "expert out in"}
    save_file(tensors, folder / "model.safetensors", metadata=note)
    assert_equal(seqloom.load(folder), model)


def test_square_stacks_of_automodel_say_it_by_name(folder):
    square = dataclasses.replace(VARIANTS["mtp"].moe, latent_width=32)
    model = make("mtp", moe=square)
    model.write_folder(folder)
    tensors = stacked("gate_and_up_projs", "down_projs", turn=True)(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors")
    assert_equal(seqloom.load(folder), model)


def test_the_links_of_a_hugging_face_cache_are_followed(folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache") / "models--a--b"
    snapshot = cache / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, cache / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert_equal(seqloom.load(snapshot), seqloom.load(folder))


# ---- what is told about a folder -----------------------------------------------------------------------------------


def test_unknown_fields_are_warned_about_once(folder):
    change_config(folder, favourite="blue", auto_map={"AutoModel": "evil.Model"}, rope_theta=10000)
    with pytest.warns(UserWarning, match="not known here, and without effect: 'favourite'$") as caught:
        seqloom.load(folder)
    assert len(caught) == 1


def test_a_bias_that_bf16_has_collapsed_is_warned_about(folder):
    def near_sixty(tensors):
        for name in [name for name in tensors if name.endswith("correction_bias")]:
            tensors[name] = 60 + 0.2 * torch.rand(8)

    spoil(folder, near_sixty)
    exact = seqloom.load(folder)  # in FP32 there is nothing to warn about

    def narrow(tensors):
        for name in [name for name in tensors if name.endswith("correction_bias")]:
            tensors[name] = tensors[name].bfloat16()

    spoil(folder, narrow)
    with pytest.warns(UserWarning, match="4 router biases were stored in bfloat16 and have collapsed"):
        collapsed = seqloom.load(folder)
    bias = collapsed.backbone.layers[1].mixer.gate.e_score_correction_bias
    assert bias.dtype == torch.float32
    assert len(bias.unique()) < 4
    assert len(exact.backbone.layers[1].mixer.gate.e_score_correction_bias.unique()) == 8


def test_a_narrow_bias_near_zero_is_nothing_to_warn_about(folder):
    def narrow(tensors):
        for name in [name for name in tensors if name.endswith("correction_bias")]:
            tensors[name] = tensors[name].bfloat16()

    spoil(folder, narrow)
    seqloom.load(folder)


def test_a_wrong_count_of_prediction_blocks_is_warned_about_where_the_weights_hold_one(folder):
    change_config(folder, num_nextn_predict_layers=2)
    with pytest.warns(UserWarning, match="num_nextn_predict_layers = 2, but the weights hold one"):
        model = seqloom.load(folder)
    assert_equal(model, make("mtp"))

    def second_block(tensors):
        for name in [name for name in tensors if name.startswith("mtp.layers.")]:
            number = int(name.split(".")[2])
            tensors[name.replace(f"layers.{number}.", f"layers.{number + 2}.")] = tensors[name].clone()

    spoil(folder, second_block)
    with pytest.raises(CheckpointError, match=r"unknown: mtp\.layers\.2.*at most one prediction block"):
        seqloom.load(folder)


def test_a_lost_prediction_block_is_explained(folder):
    def lose(tensors):
        for name in [name for name in tensors if name.startswith("mtp.")]:
            del tensors[name]

    spoil(folder, lose)
    with pytest.raises(CheckpointError, match=r"32 tensors missing.*mtp\..*set num_nextn_predict_layers to 0"):
        seqloom.load(folder)
    change_config(folder, num_nextn_predict_layers=0)
    assert seqloom.load(folder).mtp is None


def test_a_folder_of_ours_is_compared_with_its_digests(folder):
    write_manifest(folder)
    seqloom.load(folder)
    (folder / "README.md").write_text("not listed, so not our business")
    seqloom.load(folder)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for open_it in (seqloom.load, lambda folder: read_weights(make("mtp"), folder)):
        with pytest.raises(CheckpointError, match=r"not as it was written: model\.safetensors: digest differs"):
            open_it(folder)
    read_weights(make("mtp"), folder, verified=True)
    (folder / "manifest.json").unlink()  # then it is a folder like any other
    seqloom.load(folder)


def test_a_model_beyond_memory_is_refused_before_it_is_read(folder, monkeypatch):
    monkeypatch.setattr("seqloom.systems.hybrid_lm.folder.available_bytes", lambda device: 1000)
    with pytest.raises(CheckpointError, match=r"the weights take .* bytes of memory, 1,000 are free"):
        seqloom.load(folder)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_transformers_saves_is_read(name, tmp_path):
    """Its own dialect of config.json; and, a fault of it, without the prediction block."""
    transformers = pytest.importorskip("transformers")
    model = make(name)
    model.write_folder(tmp_path)
    theirs = transformers.NemotronHForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "saved")
    if name == "mtp":
        with pytest.raises(CheckpointError, match="the whole prediction block is missing"):
            seqloom.load(tmp_path / "saved")
        change_config(tmp_path / "saved", num_nextn_predict_layers=0)
        model.mtp = None
    assert_equal(seqloom.load(tmp_path / "saved"), model)


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
