"""An agent's folder: read back bit for bit, and refused when it is not what it should be."""

import json
from pathlib import Path

import pytest
import torch

from seqloom.core.checkpoint.tensors import load_tensors, save_tensors
from seqloom.core.errors import CheckpointError, ConfigError
from seqloom.core.rooms import load
from seqloom.systems.attention_agent.folder_facts import read_facts
from seqloom.systems.attention_agent.model import AttentionAgent
from tests.systems.attention_agent.small import small


@pytest.fixture
def written(tmp_path: Path) -> tuple[AttentionAgent, Path]:
    torch.manual_seed(0)
    model = small().model.build()
    model.write_folder(tmp_path)
    return model, tmp_path


def test_a_folder_is_read_back_bit_for_bit(written: tuple[AttentionAgent, Path]) -> None:
    model, folder = written
    before = torch.get_rng_state()
    found = load(folder)
    assert torch.equal(before, torch.get_rng_state())
    assert found.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
    config, facts = read_facts(folder)
    assert config == model.config
    assert facts["bytes"] == 4 * sum(parameter.numel() for parameter in model.parameters())


def test_missing_unknown_and_misshapen_tensors_are_named(written: tuple[AttentionAgent, Path]) -> None:
    model, folder = written
    path = folder / "model.safetensors"
    whole = load_tensors(path)
    save_tensors(path, {("valve.bias" if name == "value.bias" else name): part for name, part in whole.items()})
    with pytest.raises(CheckpointError, match=r"1 tensors missing, 1 unknown: 'value.bias', 'valve.bias'"):
        model.read_folder(folder)
    save_tensors(path, whole | {"value.bias": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"'value.bias' is torch.float32 \(2,\)"):
        load(folder)


def test_a_setting_that_nobody_knows_is_refused(written: tuple[AttentionAgent, Path]) -> None:
    _, folder = written
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"querys": 3}))
    with pytest.raises(ConfigError, match="querys: unknown setting; did you mean 'queries'"):
        load(folder)
