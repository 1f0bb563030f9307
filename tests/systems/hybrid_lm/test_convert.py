"""Conversion: every bit arrives, in any layout, with what belongs to it, in bounded memory; or nothing happens."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import seqloom
from seqloom.core.checkpoint import manifest
from seqloom.core.checkpoint.tensor_folder import Planned
from seqloom.core.errors import CheckpointError
from seqloom.data.tokenizer import train_tokenizer
from seqloom.systems.hybrid_lm import verify as verifying
from seqloom.systems.hybrid_lm.config import (
    AttentionConfig,
    HybridConfig,
    MambaConfig,
    MlpConfig,
    MoeConfig,
)
from seqloom.systems.hybrid_lm.convert import convert, write_streamed
from seqloom.systems.hybrid_lm.disk_weights import disk_tensors, disk_weights
from seqloom.systems.hybrid_lm.public_config import public_config
from seqloom.systems.hybrid_lm.verify import verify
from tiny_models import VARIANTS, make

FP32_ONLY = {"A_log", "D", "dt_bias", "e_score_correction_bias"}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    make("mtp").write_folder(folder)
    return folder


def assert_same_model(folder, other):
    a, b = seqloom.load(folder), seqloom.load(other)
    assert a.config == b.config
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("experts", ["separate", "stacked"])
def test_every_bit_arrives(name, experts, tmp_path):
    (tmp_path / "source").mkdir()
    make(name).write_folder(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "new", experts=experts)
    assert_same_model(tmp_path / "source", tmp_path / "new")
    assert manifest.verify(tmp_path / "new") == []


def test_there_and_back_again_is_the_same_file(source, tmp_path):
    convert(source, tmp_path / "plain")
    convert(tmp_path / "plain", tmp_path / "stacked", experts="stacked", shard_bytes=100_000)
    convert(tmp_path / "stacked", tmp_path / "back")
    assert len(list((tmp_path / "stacked").glob("model-*.safetensors"))) > 3
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_square_stacks_carry_the_note_that_reading_them_needs(tmp_path):
    (tmp_path / "source").mkdir()
    make("mtp", moe=dataclasses.replace(VARIANTS["mtp"].moe, latent_width=32)).write_folder(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "stacked", experts="stacked")
    convert(tmp_path / "stacked", tmp_path / "back")
    for folder in ("stacked", "back"):
        assert_same_model(tmp_path / "source", tmp_path / folder)


def test_other_formats_are_those_of_torch_and_some_tensors_stay(source, tmp_path):
    done = convert(source, tmp_path / "narrow", dtype="bf16")
    whole, narrow = load_file(source / "model.safetensors"), load_file(tmp_path / "narrow" / "model.safetensors")
    assert whole.keys() == narrow.keys()
    for name, tensor in narrow.items():
        stays = name.rsplit(".", 1)[1] in FP32_ONLY
        assert torch.equal(tensor, whole[name] if stays else whole[name].bfloat16()), name
    fields = json.loads((tmp_path / "narrow" / "config.json").read_text())
    assert fields["torch_dtype"] == fields["dtype"] == "bfloat16"
    assert done.stored_as.keys() == {"bfloat16", "float32"}
    assert done.bytes == sum(tensor.nbytes for tensor in narrow.values())
    assert done.tensors == len(narrow)

    convert(tmp_path / "narrow", tmp_path / "wide", dtype="fp32")
    wide = load_file(tmp_path / "wide" / "model.safetensors")
    assert all(torch.equal(wide[name], tensor.float()) for name, tensor in narrow.items())
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["torch_dtype"] == "float32"


def test_what_belongs_to_a_model_is_taken_along_and_the_rest_is_listed(source, tmp_path):
    train_tokenizer(["a b c"] * 9, 300).save(source)
    along = {
        "chat_template.jinja": "{{ messages }}",
        "generation_config.json": '{"eos_token_id": [2, 11]}',
        "README.md": "card",
        "LICENSE": "terms",
        "tokenizer.json": (source / "tokenizer.json").read_text(),
    }
    behind = {"modeling_nemotron_h.py": "import os", "pytorch_model.bin": "pickle", "notes.txt": "mine"}
    for name, text in (along | behind).items():
        (source / name).write_text(text)
    (source / "assets").mkdir()
    fields = json.loads((source / "config.json").read_text())
    more = {
        "favourite": "blue",
        "auto_map": {"AutoModel": "x.Y"},
        "eos_token_id": [2, 11],
        "max_position_embeddings": 9,
    }
    (source / "config.json").write_text(json.dumps(fields | more))

    done = convert(source, tmp_path / "new")
    assert {name: (tmp_path / "new" / name).read_text() for name in along} == along
    assert set(done.carried) == {*along, "special_tokens_map.json", "tokenizer_config.json"}
    assert done.left_behind == [*sorted({*behind, "assets"}), "config.json: favourite", "config.json: auto_map"]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        *done.carried, "config.json", "model.safetensors", "manifest.json",
    }  # fmt: skip
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert (written["eos_token_id"], written["max_position_embeddings"]) == ([2, 11], 9)
    assert not {"favourite", "auto_map"} & written.keys()


def test_a_tokenizer_that_is_a_link_elsewhere_is_not_copied(source, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (source / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: a link that leaves its folder"):
        convert(source, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "source"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("lm_head.weight"), r"missing: lm_head\.weight"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), "unknown: extra"),
        (
            lambda tensors: tensors.update({"lm_head.weight": torch.ones(3, 64)}),
            r"'lm_head.weight' has shape \(3, 64\)",
        ),
    ],
)
def test_wrong_tensors_are_named_and_nothing_is_left(change, told, source, tmp_path):
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=told):
        convert(source, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_file_that_fails_half_way_leaves_nothing(source, tmp_path, monkeypatch):
    read = os.readv

    def failing(descriptor, buffers):
        if os.lseek(descriptor, 0, os.SEEK_CUR) > 200_000:
            raise OSError(5, "Input/output error")
        return read(descriptor, buffers)

    monkeypatch.setattr(os, "readv", failing)
    with pytest.raises(CheckpointError, match=r"source/model\.safetensors: cannot be read: Input/output error"):
        convert(source, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_is_there_is_never_overwritten(source, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("new", "link", "source"):
        with pytest.raises(CheckpointError, match=f"{name}: exists; name a new folder"):
            convert(source, tmp_path / name)


def test_a_disk_without_room_is_told_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match=r"new: takes .* bytes, and the disk has 1,000 free"):
        convert(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


class TestVerify:
    def test_equal_tensors_and_logits(self, source, tmp_path):
        pytest.importorskip("transformers")
        for experts, dtype in (("separate", "keep"), ("stacked", "bf16")):
            convert(source, tmp_path / dtype, dtype=dtype, experts=experts)
            found = verify(source, tmp_path / dtype)
            assert found.tensors == len(disk_weights(source).entries)
            assert 2 < found.logits_scale < 8
            assert found.logits_difference < 2e-5
            assert "floor of dt" in found.remark

    def test_without_transformers_only_tensors_are_compared(self, source, tmp_path, monkeypatch):
        monkeypatch.setattr(verifying.importlib.util, "find_spec", lambda name: None)
        convert(source, tmp_path / "new")
        found = verify(source, tmp_path / "new")
        assert found.logits_difference is None
        assert found.remark == "only tensors were compared: transformers is not installed"

    def test_without_memory_for_two_models_only_tensors_are_compared(self, source, tmp_path, monkeypatch):
        pytest.importorskip("transformers")
        convert(source, tmp_path / "new")
        monkeypatch.setattr(verifying, "available_bytes", lambda device: 1000)
        assert "two models in FP32 take" in verify(source, tmp_path / "new").remark

    @pytest.mark.parametrize("name", ["lm_head.weight", "mtp.layers.1.mixer.experts.7.down_proj.weight"])
    def test_one_bit_is_found(self, name, source, tmp_path):
        convert(source, tmp_path / "new")
        (tmp_path / "new" / "manifest.json").unlink()
        tensors = load_file(tmp_path / "new" / "model.safetensors")
        tensors[name].view(torch.int32)[-1, -1] ^= 1
        save_file(tensors, tmp_path / "new" / "model.safetensors")
        with pytest.raises(CheckpointError, match=f"tensor '{name}' differs from"):
            verify(source, tmp_path / "new")

    def test_other_logits_are_found(self, source, tmp_path, monkeypatch):
        pytest.importorskip("transformers")
        convert(source, tmp_path / "new")
        read = verifying.read_model

        def wrong(folder, verified):
            model = read(folder, verified=verified)
            model.backbone.norm_f.weight.data[::2] *= 1.1
            return model

        monkeypatch.setattr(verifying, "read_model", wrong)
        with pytest.raises(CheckpointError, match="transformers computes other logits from it"):
            verify(source, tmp_path / "new")

    def test_nan_equals_itself_and_signs_of_zero_do_not(self):
        nan, zeros = torch.tensor([float("nan")]), torch.tensor([0.0, -0.0])
        assert torch.equal(verifying._bits(nan), verifying._bits(nan.clone()))
        assert not torch.equal(verifying._bits(zeros), verifying._bits(zeros.abs()))


STREAM = """
import sys
from pathlib import Path
from seqloom.core.devices import _kilobytes
from seqloom.systems.hybrid_lm.convert import convert
from seqloom.systems.hybrid_lm.verify import _compare_tensors
from seqloom.systems.hybrid_lm.disk_weights import disk_weights

status, (small, large, into) = Path("/proc/self/status"), map(Path, sys.argv[1:4])
def run(source, name):
    convert(source, into / f"{name}-narrow", dtype="bf16", experts="stacked", shard_bytes=100 << 20)
    convert(into / f"{name}-narrow", into / f"{name}-back", dtype="fp32")
    _compare_tensors(disk_weights(into / f"{name}-narrow"), disk_weights(into / f"{name}-back"), None)
run(small, "small")
before = _kilobytes(status, "VmRSS")
run(large, "large")
print(_kilobytes(status, "VmHWM") - before)
"""


@pytest.mark.full
def test_a_folder_many_times_larger_than_the_memory_it_takes(source, tmp_path):
    config = HybridConfig(
        pattern="ME*-",
        vocab_size=10_000,
        width=1024,
        mamba=MambaConfig(heads=16, head_width=64, state_width=64, groups=2),
        attention=AttentionConfig(heads=8, kv_heads=2),
        mlp=MlpConfig(hidden_width=4096),
        moe=MoeConfig(experts=32, top_k=4, expert_width=384, shared_width=768),
    )
    with torch.device("meta"):
        model = config.build()

    def random(shape):
        rows = max(1, 1_000_000 // shape[1:].numel())
        return lambda: (torch.rand(min(rows, shape[0] - start), *shape[1:]) for start in range(0, shape[0], rows))

    planned = [Planned(name, each.dtype, tuple(each.shape), random(each.shape)) for name, each in disk_tensors(model)]
    write_streamed(tmp_path / "large", public_config(config), planned)
    size = (tmp_path / "large" / "model.safetensors").stat().st_size
    assert size > 200e6
    command = [sys.executable, "-c", STREAM, str(source), str(tmp_path / "large"), str(tmp_path)]
    grown = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert grown < size / 6
