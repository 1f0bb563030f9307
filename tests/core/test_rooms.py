"""Any recipe and any model folder is found by name; what is not known is answered with what is."""

import functools
import json
import subprocess
import sys
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


def test_the_system_may_be_left_out_of_a_recipe() -> None:
    assert rooms.full_name("nemotron3_super") == rooms.full_name("hybrid_lm/nemotron3_super")
    assert rooms.recipe("nemotron3_super") == rooms.recipe("hybrid_lm/nemotron3_super")
    assert rooms.is_recipe("tiny")
    assert not rooms.is_recipe("tyni")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("nemotron3_supr", "hybrid_lm/nemotron3_super"),
        ("hybrid_lm/nemotron3_supr", "hybrid_lm/nemotron3_super"),
        ("nemotron-h-8b", "hybrid_lm/nemotron_h_8b"),
        ("Ultra", "hybrid_lm/nemotron3_ultra"),
        ("nano", "hybrid_lm/nemotron3_nano"),
    ],
)
def test_the_likeliest_recipe_is_named_first(written: str, meant: str) -> None:
    assert rooms.nearest(written)[0] == meant
    with pytest.raises(ConfigError, match=f"unknown recipe '{written}'; did you mean: {meant}"):
        rooms.recipe(written)


def test_a_name_unlike_any_recipe_is_answered_with_all_of_them() -> None:
    assert rooms.nearest("qwxz") == []
    with pytest.raises(ConfigError, match=", ".join(sorted(rooms.recipes()))):
        rooms.full_name("qwxz")


def test_a_name_that_two_systems_use_needs_its_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "recipes", lambda: dict.fromkeys(("ears/small", "mouth/small", "mouth/large")))
    assert rooms.full_name("mouth/small") == "mouth/small"
    assert (rooms.short_name("mouth/small"), rooms.short_name("mouth/large")) == ("mouth/small", "large")
    with pytest.raises(ConfigError, match="'small' is the name of several recipes; write one of: ears/small, mouth/"):
        rooms.full_name("small")


def test_the_main_system_needs_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "recipes", lambda: dict.fromkeys(("ears/tiny", "hybrid_lm/tiny")))
    assert rooms.full_name("tiny") == "hybrid_lm/tiny"
    assert (rooms.short_name("hybrid_lm/tiny"), rooms.short_name("ears/tiny")) == ("tiny", "ears/tiny")


def test_all_recipes_are_made_without_torch() -> None:
    program = (
        "import sys; from seqloom.core import rooms; [make() for make in rooms.recipes().values()]; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_an_unknown_system_is_answered_with_the_known() -> None:
    with pytest.raises(ConfigError, match=r"unknown system 'os'; known: .*hybrid_lm"):
        rooms.part("os", "config")


def test_a_folder_belongs_to_the_system_of_its_model_type(tmp_path: Path) -> None:
    fields = {
        "model_type": "nemotron_h",
        "time_step_limit": [0.0, float("inf")],
    }  # Infinity, as published files have it
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert rooms.owner(tmp_path) == "hybrid_lm"


def test_an_adapter_without_a_configuration_belongs_to_the_system_of_its_model(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    (adapter / rooms.ADAPTER).write_text(json.dumps({"base_model_name_or_path": str(base)}))
    assert rooms.is_adapter(adapter)
    with pytest.raises(CheckpointError, match=r"adapter: the model that the adapter sits on is not at '.*base'"):
        rooms.owner(adapter)
    (base / "config.json").write_text('{"model_type": "nemotron_h"}')
    assert rooms.owner(adapter) == "hybrid_lm"
    (adapter / "model.safetensors").touch()
    assert not rooms.is_adapter(adapter)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "there is no config.json in it"),
        ("{", "not a JSON file"),
        (b"\xff\xff", "not a JSON file"),
        ("[]", "expected an object, found a list"),
        ("{}", "names no model_type"),
        ('{"model_type": 7}', "names no model_type"),
        ('{"model_type": "nemotron_h", "model_type": "gpt2"}', "the key 'model_type' appears twice"),
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
