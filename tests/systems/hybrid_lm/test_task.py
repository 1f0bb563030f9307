"""The objective, its invariances, and a whole training on text: interrupted, resumed, and loaded elsewhere."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import micro_runs
import seqloom
from seqloom.core.errors import ConfigError, DataError
from seqloom.core.logs import read_metrics
from seqloom.data.config import SourceConfig
from seqloom.numerics.precision import PrecisionConfig
from seqloom.systems.hybrid_lm.evaluate import evaluate
from seqloom.systems.hybrid_lm.loss import targets_ahead
from seqloom.systems.hybrid_lm.task import TextTask
from seqloom.train.interrupt import Interrupted
from seqloom.train.observer import Observer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    texts = micro_runs.write_texts(tmp_path_factory.mktemp("texts") / "corpus")
    return micro_runs.narrow(texts)()


@pytest.fixture(scope="module")
def task(run):
    return TextTask(run, torch.device("cpu"))


def build(run):
    torch.manual_seed(0)
    return run.model.build().train()


def test_loss_is_main_plus_mean_look_ahead_plus_balance(run, task):
    model = build(run)
    (micro,) = task.next_batch(model, 0)
    loss = task.loss(model, micro)
    rows = micro.rows

    hidden, routings = model.hidden(rows.tokens, rows.documents)
    results, more = model.look_ahead(hidden, rows.tokens, rows.documents, 2)

    def mean(state, targets):
        return F.cross_entropy(model.head(state).flatten(0, 1), targets.flatten(), ignore_index=-100)

    main = mean(hidden, rows.targets)
    ahead = [mean(state, targets_ahead(rows, depth)) for depth, state in enumerate(results, start=1)]
    balance = sum(r.balance for r in [*routings, *more]) / int((rows.documents >= 0).sum())
    wanted = main + run.model.mtp.loss_weight / 2 * sum(ahead) + run.model.moe.balance_weight * balance
    torch.testing.assert_close(loss.total / loss.units, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss.metrics["loss"] / loss.units, main, atol=1e-5, rtol=1e-5)
    n_bytes = task.data.tokenizer.token_bytes[rows.targets[rows.targets >= 0].numpy()].sum()
    bits = main.item() * loss.units / n_bytes / math.log(2)
    assert loss.metrics["bits_per_byte"].item() / loss.units == pytest.approx(bits, rel=1e-5)


def test_balance_weighs_the_same_where_few_tokens_are_learned(run, task, monkeypatch):
    model = build(run)
    (whole,) = task.next_batch(model, 0)
    rows = whole.rows
    few = rows._replace(targets=rows.targets.where(torch.rand(rows.targets.shape) < 0.1, torch.tensor(-100)))
    monkeypatch.setattr(task.data.train, "rows", lambda positions: few)
    (masked,) = task.next_batch(model, 0)
    balances = [loss.metrics["balance_loss"] / loss.units for loss in (task.loss(model, m) for m in (whole, masked))]
    torch.testing.assert_close(balances[1], balances[0])


@pytest.mark.parametrize("micro_rows", [1, 2])
def test_micro_batches_never_change_gradient_or_load(run, task, micro_rows):
    def gradients(rows):
        split = TextTask(replace(run, task=replace(run.task, micro_rows=rows)), torch.device("cpu"))
        model = build(run)
        units = 0
        for micro in split.next_batch(model, 3):
            loss = split.loss(model, micro)
            loss.total.backward()
            units += loss.units
        loads = [moe.gate.load.clone() for moe in model.expert_layers()]
        return torch.cat([p.grad.flatten() for p in model.parameters()]) / units, loads

    whole, loads = gradients(None)
    parts, split_loads = gradients(micro_rows)
    assert (whole - parts).norm() <= 1e-6 * whole.norm()
    assert all(torch.equal(a, b) for a, b in zip(loads, split_loads, strict=True))


def test_rebalancing_follows_the_load_of_the_step(run, task):
    model = build(run)
    for micro in task.next_batch(model, 0):
        task.loss(model, micro)
    before = [moe.gate.e_score_correction_bias.clone() for moe in model.expert_layers()]
    metrics = task.after_step(model, 0)
    assert 1 <= metrics["max_vio"] <= 2  # E / k
    for moe, bias in zip(model.expert_layers(), before, strict=True):
        assert 0 < (moe.gate.e_score_correction_bias - bias).abs().max() <= 1.001e-3


class StopAt(Observer):
    def __init__(self, step):
        self.step = step

    def on_step(self, metrics):
        if metrics["step"] == self.step:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_training_goes_on_bit_for_bit(run, tmp_path):
    straight = seqloom.train(run, tmp_path / "straight")
    with pytest.raises(Interrupted):
        seqloom.train(run, tmp_path / "broken", StopAt(2))
    resumed = seqloom.train(run, tmp_path / "broken")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (straight.path / name).read_bytes() == (resumed.path / name).read_bytes()
    final = straight.folder(3) / "optim.safetensors"
    assert final.read_bytes() == (resumed.folder(3) / "optim.safetensors").read_bytes()
    clocks = ("seconds", "tokens_per_second", "memory_bytes")
    logs = [
        [{k: v for k, v in record.items() if k not in clocks} for record in read_metrics(place.metrics_path)]
        for place in (straight, resumed)
    ]
    assert logs[0] == logs[1]


def test_a_run_folder_is_a_public_model_folder(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    place = seqloom.train(run, tmp_path / "run")
    ours = seqloom.load(place.path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(place.path, dtype=torch.float32).eval()
    for layer in theirs.model.layers:
        if hasattr(layer.mixer, "dt_bias"):
            layer.mixer.time_step_limit = (0.0, float("inf"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(place.path)
    ids = tokenizer("def compute_3(alpha):\n    return", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids, use_cache=False).logits, atol=2e-5, rtol=0)
    assert theirs.generation_config.eos_token_id == 2


def test_evaluation_of_the_folder_repeats_that_of_the_run(run, tmp_path):
    place = seqloom.train(run, tmp_path / "run")
    last = [record for record in read_metrics(place.metrics_path) if record["kind"] == "valid"][-1]
    again = evaluate(place.path, rows=run.task.evaluate_rows)
    assert again["loss"] == pytest.approx(last["loss"], rel=1e-5)
    other = tmp_path / "other.txt"
    other.write_text("print(1)\n" * 50)
    measured = evaluate(place.path, (SourceConfig(path=str(other)),))
    assert measured["bytes"] == 450
    assert measured["bits_per_byte"] > 0


def test_text_to_measure_on_must_be_named_for_a_foreign_folder(run, tmp_path):
    place = seqloom.train(run, tmp_path / "run")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (foreign / name).write_bytes((place.path / name).read_bytes())
    with pytest.raises(ConfigError, match="--data"):
        evaluate(foreign)


def test_a_tokenizer_that_does_not_fit_is_refused(run, tmp_path):
    place = seqloom.train(run, tmp_path / "run")
    data = replace(run.task.data, tokenizer=str(place.path))
    small = replace(run, model=replace(run.model, vocab_size=300), task=replace(run.task, data=data))
    with pytest.raises(DataError, match="300"):
        seqloom.train(small, tmp_path / "small")


def test_a_row_length_beyond_memory_is_refused_before_allocation(run, tmp_path):
    huge = replace(run, task=replace(run.task, sequence_length=10**8))
    with pytest.raises(ConfigError, match=r"GiB.*task\.sequence_length"):
        seqloom.train(huge, tmp_path / "huge")


def test_activation_checkpointing_changes_no_bit(run, tmp_path):
    plain = seqloom.train(run, tmp_path / "plain")
    recompute = replace(run, train=replace(run.train, activation_checkpointing=True))
    other = seqloom.train(recompute, tmp_path / "recompute")
    assert (plain.path / "model.safetensors").read_bytes() == (other.path / "model.safetensors").read_bytes()


def test_bf16_learns_what_fp32_learns_and_keeps_fp32_masters(run, tmp_path):
    losses = []
    for activations in ("fp32", "bf16"):
        place = seqloom.train(replace(run, precision=PrecisionConfig(activations=activations)), tmp_path / activations)
        losses.append([record["loss"] for record in read_metrics(place.metrics_path) if record["kind"] == "valid"][-1])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert all(tensor.dtype == torch.float32 for tensor in seqloom.load(tmp_path / "bf16").state_dict().values())


def test_generation_settings_name_the_tokens_of_the_tokenizer(run, tmp_path):
    place = seqloom.train(run, tmp_path / "run")
    fields = json.loads((place.path / "config.json").read_text())
    generation = json.loads((place.path / "generation_config.json").read_text())
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert fields[key] == generation[key]
