"""What a person and a program are told about a recipe, a run, and folders of every kind."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch

from micro_runs import Trained
from seqloom.cli.main import main
from seqloom.cli.show import readable, table
from seqloom.core.checkpoint.tensor_folder import Planned, write_tensors
from seqloom.core.config import to_yaml
from seqloom.core.rooms import load, recipe
from seqloom.systems.hybrid_lm.folder import write_model
from tiny_models import make

SUPER = """\
size
  layers                               88
  layer kinds             40 Mamba-2, 8 attention, 40 mixture of experts
  total parameters        123,611,033,088
  parameters              120,668,707,840
  mtp parameters            2,942,325,248
  active                   11,696,495,616
  active with head         12,233,366,528
  active with embeddings   12,770,237,440
  tensors                          42,683
  stacked tensors                     781
  weight bytes in bf16    247,222,138,880  230.2 GiB
  flops per token          24,728,868,864

memory of a sequence
  inner width                            8,192
  conv channels                         10,240
  in proj rows                          18,560
  kv bytes per token                     8,192  8.0 KiB
  ssm elements                      41,943,040
  ssm bytes                        167,772,160  160.0 MiB
  conv elements                      1,638,400
  state bytes                      171,048,960  163.1 MiB
  state bytes held here            170,229,760  162.3 MiB
  crossover tokens                      20,880
  cache bytes at 8192 tokens       238,157,824  227.1 MiB
  cache bytes at 131072 tokens   1,244,790,784  1.2 GiB
  cache bytes at 1048576 tokens  8,760,983,552  8.2 GiB
"""


def test_recipe_shows_settings_cost_formats_and_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    main(["show", "hybrid_lm/tiny"])
    text = capsys.readouterr().out
    for part in ("pattern: M-M*EME", "ssd", "modules", "total parameters", "needed bytes", "available bytes"):
        assert part in text


def test_a_model_that_fits_on_no_machine_shows_the_table_of_its_report(capsys: pytest.CaptureFixture[str]) -> None:
    main(["show", "nemotron3_super"])
    text = capsys.readouterr().out
    assert text.startswith("hybrid_lm/nemotron3_super\nNemotron 3 Super 120B-A12B")
    assert SUPER in text


def test_what_a_recipe_is_unsure_of_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    main(["show", "nemotron35_lightning"])
    assert "\nUnsure: the training, apart from the prediction block" in capsys.readouterr().out


def test_json_counts_the_numbers_of_the_model(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(trained.folder, capsys)
    counted = sum(tensor.numel() for tensor in load(trained.folder).state_dict().values())
    assert found["size"]["total_parameters"] == counted
    assert found["settings"]["train"]["steps"] == 3
    assert set(found["number_formats"].values()) <= {"fp32", "bf16"}
    newest = found["newest_checkpoint"]
    assert (newest["step"], newest["manifest"], newest["tokenizer"]) == (3, "manifest.json", "tokenizer.json")
    assert newest["tensors"] == newest["expected_tensors"] == found["size"]["tensors"]


def test_a_run_without_a_checkpoint_shows_its_settings(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trained.folder / "run.yaml", tmp_path)
    found = shown(tmp_path, capsys)
    assert found["settings"]["train"]["steps"] == 3
    assert "newest_checkpoint" not in found


def test_a_folder_with_a_configuration_only_shows_cost_and_shapes(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trained.folder / "config.json", tmp_path)
    found, of_run = shown(tmp_path, capsys), shown(trained.folder, capsys)
    for section in ("size", "memory_of_a_sequence"):
        assert found[section] == of_run[section]
    assert found["settings"]["width"] == 32
    assert found["folder"]["layout"] is None


def test_a_public_folder_shows_what_it_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make("mtp")
    write_model(model, tmp_path)
    found = shown(tmp_path, capsys)["folder"]
    assert found["number_format"] == "fp32"
    assert found["layout"] == "one tensor for each matrix"
    assert (found["files"], found["tensors"], found["expected_tensors"]) == (1, 136, 136)
    assert found["bytes"] == 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    assert found["stored_as"] == "136 in float32"
    for name in ("tokenizer", "chat_template", "generation_settings", "manifest"):
        assert found[name] is None
    assert found["unknown_fields"] == []


def test_shards_of_stacked_experts_are_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make("mtp")
    write_model(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    narrow = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    narrow["lm_head.weight"] = model.lm_head.weight.detach()
    planned = [Planned(name, t.dtype, tuple(t.shape), lambda t=t: [t]) for name, t in narrow.items()]
    write_tensors(tmp_path, planned, shard_bytes=200_000)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (tmp_path / "generation_config.json").write_text("{}")
    add_fields(tmp_path, torch_dtype="bfloat16", dtype="bfloat16", colour="green")
    found = shown(tmp_path, capsys)["folder"]
    assert found["number_format"] == "bf16"
    assert found["layout"] == "experts stacked"
    assert found["files"] == len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert found["tensors"] == found["expected_tensors"] == len(narrow)
    assert found["bytes"] == sum(tensor.nbytes for tensor in narrow.values())
    assert found["stored_as"] == f"{len(narrow) - 1} in bfloat16, 1 in float32"
    assert (found["chat_template"], found["generation_settings"]) == ("tokenizer_config.json", "generation_config.json")
    assert found["unknown_fields"] == ["colour"]


def test_a_folder_that_lost_its_prediction_block_shows_too_few_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(make("latent"), tmp_path)
    add_fields(tmp_path, num_nextn_predict_layers=1)
    found = shown(tmp_path, capsys)["folder"]
    assert (found["tensors"], found["expected_tensors"]) == (104, 136)


def test_a_recipe_that_waits_for_a_model_shows_its_settings_only(capsys: pytest.CaptureFixture[str]) -> None:
    found = shown("finetune", capsys)
    assert found["settings"]["adapter"]["rank"] > 0
    assert "size" not in found


def test_a_run_of_adapters_shows_what_they_reach_and_needs_no_base_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, folder = tmp_path / "base", tmp_path / "run"
    base.mkdir()
    folder.mkdir()
    write_model(make("mtp"), base)
    run = recipe("finetune").starting_from(str(base))
    (folder / "run.yaml").write_text(to_yaml(replace(run, train=replace(run.train, device="cpu"))))
    found = shown(folder, capsys)
    assert found["size"]["total_parameters"] == 245_352
    training = found["training_on_cpu"]
    assert training["adapters_on_Mamba-2"].startswith("3 of 3 layers")
    assert training["needed_bytes"] > 2 * 245_352
    shutil.rmtree(base)
    assert shown(folder, capsys)["training_on_cpu"] == training | {"needed_bytes": None, "available_bytes": ANY}


@pytest.mark.parametrize("with_config", [True, False])
def test_adapters_show_the_model_they_sit_on(
    with_config: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    write_model(make("dense"), base)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    prefix = "base_model.model.model.layers.0.mixer.in_proj"
    factors = {f"{prefix}.lora_A.weight": torch.zeros(4, 64), f"{prefix}.lora_B.weight": torch.zeros(328, 4)}
    planned = [Planned(name, t.dtype, tuple(t.shape), lambda t=t: [t]) for name, t in factors.items()]
    write_tensors(adapter, planned, stem="adapter_model")
    if with_config:
        shutil.copy(base / "config.json", adapter)
    found = shown(adapter, capsys)
    assert found["folder"]["adapter_on"] == str(base)
    assert (found["folder"]["rank"], found["folder"]["scale"], found["folder"]["tensors"]) == (4, 2.0, 2)
    assert found["settings"]["pattern"] == "M-M*-M-"


@pytest.mark.parametrize(
    ("what", "said"),
    [("hybrid_lm/tin", "did you mean 'tiny'?"), ("nemotron3_supr", "did you mean 'nemotron3_super'?")],
)
def test_what_is_not_there_is_named(what: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["show", what])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_a_damaged_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(make("dense"), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit):
        main(["show", str(tmp_path)])
    assert "model.safetensors: damaged or not a safetensors file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("parameters", 1234567, "1,234,567"),
        ("state_bytes", 2048, "2,048  2.0 KiB"),
        ("bytes", 1000, "1,000"),
        ("format", "bf16", "bf16"),
        ("manifest", None, "-"),
        ("unknown_fields", [], "-"),
        ("unknown_fields", ["a", "\x1b[2J"], "a, '\\x1b[2J'"),
        ("unknown_fields", list("x" * 22), ", ".join("x" * 20) + " and 2 more"),
    ],
)
def test_values_are_readable(name: str, value: object, text: str) -> None:
    assert readable(name, value) == text


def test_many_equal_values_are_one_line() -> None:
    assert table(dict.fromkeys("abcdefghi", "bf16")) == ["all 9 modules  bf16"]
    assert table({"short": 1, "a_longer_name": 1000}) == ["short              1", "a longer name  1,000"]


def shown(what: str | Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    main(["show", str(what), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def add_fields(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
