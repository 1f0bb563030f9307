"""Any recipe and any model folder is found by name; what is not known is answered with what is."""

import functools
import json
from pathlib import Path

import pytest
import torch

from seqloom.core import rooms
from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.errors import CheckpointError, ConfigError
from seqloom.systems.hybrid_lm.folder import write_model
from tiny_models import make


def test_every_recipe_makes_a_run_of_its_own_system() -> None:
    assert "hybrid_lm/tiny" in rooms.recipes()
    for name in rooms.recipes():
        assert rooms.recipe(name).system == name.split("/")[0]


def test_a_misspelt_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown recipe 'hybrid_lm/tyni'; did you mean: hybrid_lm/tiny"):
        rooms.recipe("hybrid_lm/tyni")


def test_an_unknown_system_is_answered_with_the_known() -> None:
    with pytest.raises(ConfigError, match=r"unknown system 'os'; known: .*hybrid_lm"):
        rooms.part("os", "config")


def test_a_folder_belongs_to_the_system_of_its_model_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nemotron_h"}))
    assert rooms.owner(tmp_path) == "hybrid_lm"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "there is no config.json in it"),
        ("{", "not a JSON file"),
        (b"\xff\xff", "not a JSON file"),
        ("[]", "names no model_type"),
        ("{}", "names no model_type"),
        ('{"model_type": "gpt2"}', "model_type 'gpt2' is not known here; known: .*nemotron_h"),
    ],
)
def test_a_folder_nobody_can_read_is_refused(content: str | bytes | None, expected: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=expected) as caught:
        rooms.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: not a model or run folder; it does not exist"):
        rooms.load(tmp_path / "nowhere")


def test_the_newest_whole_checkpoint_of_a_run_is_loaded(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    models = [make("latent", seed) for seed in (1, 2)]
    with run.lock():
        for step, model in enumerate(models):
            run.save(step, functools.partial(write_model, model), keep=2)
    loaded = rooms.load(run.path)
    assert not loaded.training
    tokens = torch.arange(6)[None]
    assert torch.equal(loaded(tokens), models[1](tokens))
    path = run.path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=r"step 1: model\.safetensors: digest differs; using step 0"):
        assert torch.equal(rooms.load(run.path)(tokens), models[0](tokens))


def test_a_damaged_run_folder_is_not_loaded(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.lock():
        run.save(1, lambda folder: (folder / "config.json").write_text('{"model_type": "nemotron_h"}'), keep=2)
    (run.path / "config.json").write_text('{"model_type": "nemotron_H"}')
    with pytest.raises(CheckpointError, match=r"step 1: config\.json: digest differs"):
        rooms.load(run.path)
