"""Model folders: bit for bit there and back, and refused by name when anything is wrong."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from seqloom.core.errors import CheckpointError, ConfigError
from seqloom.core.rooms import load
from seqloom.systems.deep_speech2.alphabet import build_alphabet
from seqloom.systems.deep_speech2.budget import describe
from seqloom.systems.deep_speech2.folder_facts import read_facts
from seqloom.systems.deep_speech2.model import DeepSpeech2
from tiny_speech import narrow


@pytest.fixture
def written(tmp_path):
    torch.manual_seed(0)
    model = DeepSpeech2(narrow().model)
    model.normaliser.learn(torch.randn(20), torch.rand(20) + 0.5)
    model(torch.randn(2, 20, 30), torch.tensor([30, 20]))
    model.alphabet = build_alphabet("characters", [], 29)
    model.write_folder(tmp_path)
    return model, tmp_path


def test_a_folder_gives_the_same_model(written):
    model, folder = written
    found = load(folder)
    assert found.config == model.config
    assert found.alphabet == model.alphabet
    features, lengths = torch.randn(2, 20, 30), torch.tensor([30, 20])
    assert torch.equal(found(features, lengths)[0], model.eval()(features, lengths)[0])


def test_facts_need_no_weights(written):
    model, folder = written
    config, facts = read_facts(folder)
    assert config == model.config
    assert facts["tensors"] == len(model.state_dict())
    assert facts["alphabet"].startswith("a b c")
    size = describe(config)["size"]
    assert size["total_parameters"] == sum(p.numel() for p in model.parameters())


def test_foreign_or_damaged_folders_are_refused(written):
    _, folder = written
    weights, fields = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())

    def refused(error, reason):
        with pytest.raises(error, match=reason):
            load(folder)

    save_file({name: tensor for name, tensor in weights.items() if name != "head.bias"}, folder / "model.safetensors")
    refused(CheckpointError, r"1 tensors missing \['head.bias'\]")
    save_file(weights | {"more": torch.zeros(1)}, folder / "model.safetensors")
    refused(CheckpointError, r"1 unknown \['more'\]")
    save_file(weights | {"head.bias": torch.zeros(3)}, folder / "model.safetensors")
    refused(CheckpointError, r"'head.bias' is torch.float32 \(3,\)")
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(fields | {"vocab_size": 30}))
    refused(CheckpointError, "head.weight")
    (folder / "config.json").write_text(json.dumps(fields | {"wide": 3}))
    refused(ConfigError, "unknown setting")
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "alphabet.json").write_text('{"symbols": ["", "a"]}')
    refused(CheckpointError, "2 symbols; the model has 29 outputs")
    (folder / "alphabet.json").unlink()
    refused(CheckpointError, "alphabet.json")
