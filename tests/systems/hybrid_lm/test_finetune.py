"""Training that begins with a model folder: adapters and all weights, resumed, refused, and used afterwards."""

import dataclasses
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import seqloom
from micro_runs import narrow, write_texts
from seqloom.core.checkpoint.manifest import write_manifest
from seqloom.core.checkpoint.tensor_folder import TensorFolder
from seqloom.core.config import check, parse, read_yaml
from seqloom.core.errors import CheckpointError, ConfigError
from seqloom.data.config import SourceConfig
from seqloom.serve.config import Sampling
from seqloom.serve.engine import Engine
from seqloom.systems.hybrid_lm.adapter import merge
from seqloom.systems.hybrid_lm.config import LoraConfig, Run
from seqloom.systems.hybrid_lm.disk_weights import is_fp32_only
from seqloom.systems.hybrid_lm.evaluate import evaluate
from seqloom.train.interrupt import Interrupted
from seqloom.train.observer import Observer
from tiny_models import excite


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("data") / "texts")


@pytest.fixture(scope="module")
def base(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foreign folder: BF16 weights with every layer kind and a prediction block, a tokenizer, no manifest."""
    place = tmp_path_factory.mktemp("base")
    seqloom.train(short(texts), place / "run")
    model = excite(seqloom.load(place / "run"))
    for name, parameter in model.named_parameters():
        if not is_fp32_only(name):
            parameter.data = parameter.data.bfloat16()
    folder = place / "foreign"
    folder.mkdir()
    model.write_folder(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(place / "run" / name, folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"eos_token_id": [2, 11], "max_position_embeddings": 77}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 11], "temperature": 0.6}))
    return folder


def short(texts: Path) -> Run:
    """A step of a small model with one layer of each kind."""
    run = narrow(texts)()
    model = replace(run.model, pattern="ME*-", mtp=replace(run.model.mtp, depth=1))
    return replace(run, model=model, train=replace(run.train, steps=1))


def tuning(recipe: str, base: Path, texts: Path, steps: int = 4, **changes: object) -> Run:
    run = seqloom.recipe(recipe).starting_from(str(base))
    data = replace(run.task.data, sources=(SourceConfig(path=str(texts)),), form="documents", valid_fraction=0.2)
    task = replace(run.task, data=data, sequence_length=32, batch_rows=4, micro_rows=2, evaluate_rows=4)
    schedule = replace(run.train.schedule, warmup_steps=1)
    train = replace(run.train, steps=steps, evaluate_every=steps, save_every=steps, schedule=schedule)
    run = replace(run, task=task, train=train, **changes)
    return check(run)


class Watch(Observer):
    """Keeps what it is told."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.losses: list[float] = []
        self.stop_at = stop_at

    def on_start(self, report) -> None:
        self.report = report

    def on_step(self, metrics: dict[str, float]) -> None:
        self.losses.append(metrics["loss"])
        if metrics["step"] == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def tuned(base: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watch]:
    """A finished training of adapters."""
    folder, watch = tmp_path_factory.mktemp("tuned") / "run", Watch()
    run = tuning("finetune", base, texts, steps=12)
    optimizer = replace(run.train.optimizer, lr=5e-3)
    seqloom.train(replace(run, train=replace(run.train, optimizer=optimizer)), folder, watch)
    return folder, watch


def test_adapters_learn_and_the_base_does_not_move(tuned, base):
    folder, watch = tuned
    assert watch.losses[-1] < watch.losses[0] - 0.1
    assert {path.name for path in (folder / "latest").iterdir()} >= {
        "adapter_config.json", "adapter_model.safetensors", "base.json", "config.json", "tokenizer.json",
    }  # fmt: skip
    assert not any(folder.rglob("model*.safetensors"))
    run = parse(Run, read_yaml(folder / "run.yaml"), "run.yaml")
    trained = run.build_model()
    trained.read_folder(folder / "latest")
    stored, moved = TensorFolder(base), 0
    for name, parameter in trained.named_parameters():
        if "lora" in name:
            assert parameter.dtype == torch.float32
            moved += int("lora_b" in name and bool((parameter != 0).any()))
        elif ".experts." not in name or "shared" in name:
            assert torch.equal(parameter, stored.read(name)), name
            assert parameter.dtype == stored.entries[name].dtype
    assert moved > 20
    for name, buffer in trained.named_buffers():
        if name.endswith("e_score_correction_bias"):
            assert torch.equal(buffer, stored.read(name)), name


def test_the_start_report_tells_which_layers_are_reached(tuned, base):
    folder, watch = tuned
    table = watch.report.adapter["coverage"]
    assert json.loads((folder / "adapter.json").read_text()) == watch.report.adapter
    assert watch.report.adapter["base"] == str(base)
    assert {kind: row["adapted_layers"] for kind, row in table.items()} == {"M": 1, "E": 1, "*": 1, "-": 1, "mtp": 1}
    assert sum(row["parameters"] for row in table.values()) == watch.report.parameters


def test_a_run_of_adapters_is_a_model_for_every_verb(tuned, base, tmp_path):
    folder, _ = tuned
    ids = torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    model = seqloom.load(folder)
    assert model.lm_head.weight.dtype == torch.bfloat16
    with torch.no_grad():
        assert (model(ids) - seqloom.load(base)(ids)).abs().max() > 0.05
    (completion,) = Engine(folder).generate(["def "], Sampling(max_tokens=3))
    assert completion.text is not None
    measured = evaluate(folder)
    assert measured["loss"] < evaluate(base, (SourceConfig(path=str(_texts(folder))),))["loss"]
    merge(folder / "latest", tmp_path / "merged")
    with torch.no_grad():
        assert torch.equal(seqloom.load(tmp_path / "merged")(ids), model(ids))
    assert Engine(tmp_path / "merged").tokenizer.size


def _texts(folder: Path) -> Path:
    return Path(read_yaml(folder / "run.yaml")["task"]["data"]["sources"][0]["path"])


def test_settings_of_the_base_are_kept(tuned):
    folder, _ = tuned
    fields = json.loads((folder / "config.json").read_text())
    assert (fields["eos_token_id"], fields["max_position_embeddings"]) == ([2, 11], 77)
    assert json.loads((folder / "generation_config.json").read_text())["temperature"] == 0.6


@pytest.mark.parametrize("recipe", ["finetune", "finetune_full"])
def test_a_stopped_run_goes_on_bit_for_bit(recipe, base, texts, tmp_path):
    run = tuning(recipe, base, texts)
    if run.adapter:
        run = replace(run, adapter=replace(run.adapter, dropout=0.2, experts=False))
    seqloom.train(run, tmp_path / "whole")
    with pytest.raises(Interrupted):
        seqloom.train(run, tmp_path / "cut", Watch(stop_at=2))
    seqloom.train(run, tmp_path / "cut")
    weights = "adapter_model" if run.adapter else "model"
    for name in (f"{weights}.safetensors", "optim.safetensors", "rng.safetensors"):
        whole, cut = (tmp_path / folder / "latest" / name for folder in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes(), name


@pytest.mark.full
def test_recomputed_layers_and_plain_ones_learn_alike(base, texts, tmp_path):
    run, losses = tuning("finetune", base, texts, steps=2), []
    for again in (True, False):
        watch = Watch()
        seqloom.train(
            replace(run, train=replace(run.train, activation_checkpointing=again)), tmp_path / str(again), watch
        )
        losses.append(watch.losses)
    assert losses[0] == losses[1]


@pytest.mark.full
def test_adapters_train_in_bf16(base, texts, tmp_path):
    run, watch = tuning("finetune", base, texts, steps=3), Watch()
    seqloom.train(replace(run, precision=replace(run.precision, activations="bf16")), tmp_path, watch)
    assert all(torch.tensor(watch.losses).isfinite())
    assert set(watch.report.formats.values()) == {"bf16"}


@pytest.mark.full
def test_all_weights_of_a_bf16_folder_learn_as_fp32_masters(base, texts, tmp_path):
    watch = Watch()
    run = tuning("finetune_full", base, texts, steps=6)
    optimizer = replace(run.train.optimizer, lr=3e-3)
    seqloom.train(replace(run, train=replace(run.train, optimizer=optimizer)), tmp_path / "run", watch)
    assert watch.losses[-1] < watch.losses[0]
    assert watch.report.adapter == {}
    stored, before = TensorFolder(tmp_path / "run/latest"), TensorFolder(base)
    assert stored.entries.keys() == before.entries.keys()
    for name, entry in stored.entries.items():
        assert entry.dtype == torch.float32
        assert not torch.equal(stored.read(name), before.read(name).float()), name
    assert json.loads((tmp_path / "run/config.json").read_text())["torch_dtype"] == "float32"
    assert (tmp_path / "run/latest/base.json").exists()


def test_training_begins_exactly_where_the_folder_stands(base, texts):
    model, stored = tuning("finetune_full", base, texts).build_model(), TensorFolder(base)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        if ".experts." not in name or "shared" in name:
            assert torch.equal(tensor, stored.read(name).float()), name


@pytest.mark.full
@pytest.mark.parametrize("recipe", ["finetune", "finetune_full"])
def test_a_prediction_block_whose_loss_is_off_rests(recipe, base, texts, tmp_path):
    run = tuning(recipe, base, texts, steps=2)
    run = replace(run, model=replace(run.model, mtp=replace(run.model.mtp, loss_weight=0.0)))
    watch = Watch()
    seqloom.train(run, tmp_path, watch)
    if run.adapter:
        assert "mtp" not in watch.report.adapter["coverage"]
    else:
        stored, before = TensorFolder(tmp_path / "latest"), TensorFolder(base)
        resting = [name for name in before.entries if name.startswith("mtp.") and "bias" not in name]
        assert resting
        assert all(torch.equal(stored.read(name), before.read(name).float()) for name in resting)


@pytest.mark.full
def test_a_run_folder_is_a_base_too_and_any_recipe_can_begin_with_one(base, texts, tmp_path):
    seqloom.train(tuning("finetune_full", base, texts, steps=1), tmp_path / "first")
    run = narrow(texts)().starting_from(str(tmp_path / "first"))
    assert run.model == replace(short(texts).model, mtp=narrow(texts)().model.mtp, init_std=run.model.init_std)
    seqloom.train(replace(run, train=replace(run.train, steps=1)), tmp_path / "second")
    assert seqloom.load(tmp_path / "second").vocab_size == 320


@pytest.mark.parametrize("recipe", ["finetune", "finetune_full"])
def test_a_changed_base_is_refused_by_name(recipe, base, texts, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    run = tuning(recipe, tmp_path / "base", texts, steps=2)
    with pytest.raises(Interrupted):
        seqloom.train(run, tmp_path / "run", Watch(stop_at=1))
    path = tmp_path / "base/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        CheckpointError, match=r"base: not the model that the run in .* began with: model\.safetensors ch"
    ):
        seqloom.train(run, tmp_path / "run")
    if run.adapter:
        with pytest.raises(CheckpointError, match=r"not the model that .* was trained on: model\.safetensors changed"):
            seqloom.load(tmp_path / "run")


@pytest.mark.full
def test_a_base_that_moved_is_no_other_base(base, texts, tmp_path):
    shutil.copytree(base, tmp_path / "here")
    with pytest.raises(Interrupted):
        seqloom.train(tuning("finetune", tmp_path / "here", texts, steps=2), tmp_path / "run", Watch(stop_at=1))
    (tmp_path / "here").rename(tmp_path / "there")
    seqloom.train(tuning("finetune", tmp_path / "there", texts, steps=2), tmp_path / "run")
    seqloom.load(tmp_path / "run")


def test_a_run_written_before_a_setting_existed_goes_on(base, texts, tmp_path):
    run = tuning("finetune_full", base, texts, steps=2)
    with pytest.raises(Interrupted):
        seqloom.train(run, tmp_path, Watch(stop_at=1))
    step = tmp_path / "steps/00000001"
    older = (step / "run.yaml").read_text().replace("adapter: null\n", "")
    (step / "run.yaml").write_text(older)
    write_manifest(step)
    assert "adapter" not in read_yaml(step / "run.yaml")
    seqloom.train(run, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda run: replace(run, model=replace(run.model, norm_eps=1e-6)),
            r"model\.norm_eps: 1e-06 in the run, 1e-05",
        ),
        (lambda run: replace(run, model=replace(run.model, mtp=None)), r"model\.mtp: None in the run"),
        (lambda run: replace(run, init_from="nowhere"), "there is no folder nowhere"),
        (lambda run: replace(run, init_from=""), r"name one: seqloom train finetune --model FOLDER --data FILE"),
        (
            lambda run: replace(run, adapter=LoraConfig(targets=("q_proj",))),
            "0 of 1 Mamba-2 layers would get an adapter",
        ),
    ],
)
def test_a_run_that_cannot_begin_says_why(change, said, base, texts, tmp_path):
    with pytest.raises(ConfigError, match=said):
        seqloom.train(change(tuning("finetune", base, texts)), tmp_path / "run")
    assert not any((tmp_path / "run").rglob("*.safetensors"))


def test_adapters_want_a_base_and_adamw(base, texts):
    run = tuning("finetune", base, texts)
    with pytest.raises(ConfigError, match="adapters need a model to sit on"):
        replace(run, init_from=None)
    optimizer = replace(run.train.optimizer, kind="muon")
    with pytest.raises(ConfigError, match=r"train\.optimizer\.kind: 'muon'.*use 'adamw'"):
        replace(run, train=replace(run.train, optimizer=optimizer))


def test_adapters_are_no_base(tuned, texts):
    with pytest.raises(ConfigError, match="holds adapters, not a model; merge them first"):
        tuning("finetune", tuned[0], texts)


def test_memory_is_estimated_for_what_learns(base, texts):
    adapters, everything = (tuning(name, base, texts) for name in ("finetune", "finetune_full"))
    assert adapters.model.training_bytes(adapters) < everything.model.training_bytes(everything)
    thicker = replace(adapters, adapter=dataclasses.replace(adapters.adapter, rank=32))
    assert adapters.model.training_bytes(adapters) < thicker.model.training_bytes(thicker)
