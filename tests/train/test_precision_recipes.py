"""Trainings in few bits: every recipe learns, cut into pieces and recomputed it computes the same, stopped and resumed
it is the same run, and what it keeps for itself stays FP32."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import micro_runs
import tiny_models
from seqloom.cli.display import start_lines
from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.checkpoint.tensors import load_tensors
from seqloom.core.errors import CheckpointError, ConfigError, NumericsError
from seqloom.core.logs import read_metrics
from seqloom.numerics.options import Fp8Options
from seqloom.numerics.place import Clock, Place, events
from seqloom.numerics.precision import PrecisionConfig, PrecisionRule, apply_precision
from seqloom.systems.hybrid_lm.config import Run
from seqloom.systems.hybrid_lm.divide import refuse_indivisible
from seqloom.systems.hybrid_lm.task import TextTask
from seqloom.train.config import ParallelConfig
from seqloom.train.delayed_scales import recall, remember, remembered
from seqloom.train.interrupt import Interrupted
from seqloom.train.loop import train
from seqloom.train.observer import Observer, StartReport

RECIPES = (
    "fp8_nemotron_h", "fp8_delayed", "fp8_blockwise", "mxfp8", "nvfp4", "nvfp4_super", "mxfp4", "mor_tensor",
    "mor_subtensor", "mor_nvfp4",
)  # fmt: skip
QUICK = ("nvfp4_super", "mor_nvfp4")
RESUMED = RECIPES if os.environ.get("SEQLOOM_SOAK") == "1" else ("fp8_delayed", "nvfp4_super", "mor_subtensor")
CLOCKS = {"seconds", "tokens_per_second", "memory_bytes"}
every_recipe = pytest.mark.parametrize(
    "recipe", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in RECIPES]
)


class Quiet(Observer):
    """Keeps the report and the losses, and presses Ctrl-C after a step if asked."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.losses = stop, list[float]()

    def on_start(self, report: StartReport) -> None:
        self.report = report

    def on_step(self, metrics: dict[str, float]) -> None:
        self.losses.append(metrics["loss"])
        if metrics["step"] == self.stop:
            os.kill(os.getpid(), signal.SIGINT)

    def on_message(self, text: str) -> None:
        pass


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = micro_runs.narrow(micro_runs.write_texts(tmp_path_factory.mktemp("texts") / "corpus"))()
    settings = replace(run.train, steps=3, save_every=100, evaluate_every=3, monitor_every=None, device="cpu")
    return replace(run, train=settings, task=replace(run.task, micro_rows=2, evaluate_rows=2))


def of(run: Run, recipe: str, **settings: Any) -> Run:
    return replace(run, precision=PrecisionConfig(recipe=recipe, **settings))


@pytest.fixture(scope="module")
def short(run: Run) -> Run:
    """Two layers and a depth of prediction less: what whole trainings show needs no more, and few bits take long."""
    return replace(run, model=replace(run.model, pattern="M-M*E", mtp=replace(run.model.mtp, depth=1)))


def left(folder: Path) -> dict[str, Any]:
    """Weights, optimizer state and log of a finished run, without what the clock decides."""
    _, last = RunFolder(folder).open_latest()
    log = [
        {name: value for name, value in line.items() if name not in CLOCKS}
        for line in read_metrics(folder / "metrics.jsonl")
    ]
    files = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    return {"log": log, **files}


@pytest.mark.full
@pytest.mark.parametrize("recipe", RESUMED)
def test_it_learns_and_stopped_and_resumed_it_is_the_same_run(recipe: str, short: Run, tmp_path: Path):
    here = of(short, recipe)
    whole, broken, watch = tmp_path / "whole", tmp_path / "broken", Quiet()
    train(here, whole, watch)
    with pytest.raises(Interrupted):
        train(here, broken, Quiet(stop=1))
    train(here, broken, Quiet())
    found = left(whole)
    assert left(broken) == found
    assert ("amax.safetensors" in found) == (recipe == "fp8_delayed")
    assert not (whole / "amax.safetensors").exists()  # which is no part of the model
    assert watch.losses[-1] < watch.losses[0]
    _, last = RunFolder(whole).open_latest()
    dtypes = {t.dtype for name in ("model", "optim") for t in load_tensors(last / f"{name}.safetensors").values()}
    assert torch.bfloat16 not in dtypes
    assert torch.float32 in dtypes
    table = json.loads((whole / "formats.json").read_text())
    assert set(table.values()) == {"bf16", *here.precision.formats()}
    assert f"recipe {recipe}: matrices of linear layers" in "\n".join(start_lines(watch.report))
    if recipe.startswith("mor"):
        steps = [line for line in found["log"] if line["kind"] == "representations"]
        assert len(steps) == 3
        for line, metrics in zip(steps, (line for line in found["log"] if line["kind"] == "train"), strict=True):
            counts = {name: count for name, count in line.items() if name not in ("kind", "step")}
            fp8 = sum(count for name, count in counts.items() if name.endswith(".e4m3"))
            assert metrics["fp8_share"] == fp8 / sum(counts.values())
    with pytest.raises(CheckpointError, match=r"precision\.recipe"):
        train(of(short, "bf16"), whole, Quiet())


@pytest.fixture(scope="module")
def task(run: Run) -> TextTask:
    return TextTask(run, torch.device("cpu"))


@every_recipe
def test_recomputed_layers_and_pieces_repeat_every_decision(recipe: str, run: Run, task: TextTask):
    torch.manual_seed(0)
    model = tiny_models.excite(run.model.build()).train()
    clock, results = Clock(seed=5), []
    apply_precision(model, PrecisionConfig(recipe=recipe, activations="bf16"), clock)
    for model.checkpoint_layers in (False, True):
        model.zero_grad()
        for number, micro in enumerate(task.next_batch(model, 0)):
            clock.begin(0, number)
            task.loss(model, micro).total.backward()
        results.append(({name: p.grad.clone() for name, p in model.named_parameters()}, events(model)))
    (whole, counts), (again, recounted) = results
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert all(gradient.dtype == torch.float32 for gradient in whole.values())
    assert counts == recounted
    linears = {sum(kinds.values()) for (name, _), kinds in counts.items() if name.endswith("_proj.weight")}
    assert linears == {"mor_subtensor": {2, 4}, "mor_tensor": {2}, "mor_nvfp4": {2}}.get(recipe, set())


def test_delayed_scales_remember_steps_that_are_taken(run: Run, task: TextTask):
    torch.manual_seed(0)
    model, clock, seen = tiny_models.excite(run.model.build()).train(), Clock(), list[float]()
    settings = PrecisionConfig(
        recipe="fp8_delayed", activations="bf16", keep_last=1, fp8=Fp8Options(history=2, margin=1)
    )
    apply_precision(model, settings, clock)
    layer, name = model.backbone.layers[0].mixer.in_proj, "backbone.layers.0.mixer.in_proj.weight"
    layer.register_forward_pre_hook(lambda _, given: seen.append(float(given[0].detach().abs().max())))

    def step(number: int) -> dict[str, list[float]]:
        for count, micro in enumerate(task.next_batch(model, number)):
            clock.begin(number, count)
            task.loss(model, micro).total.backward()
        remember(model)
        clock.begin(number + 1)
        return {each: history.tolist() for each, history in remembered(model).items()}

    first = step(0)
    assert len(seen) == 2
    assert first[f"{name}.x"] == [max(seen), 0.0]
    assert first[f"{name}.w"] == [float(layer.weight.detach().abs().max().bfloat16()), 0.0]
    assert min(history[0] for history in first.values()) > 0
    kept, second = {each: history.clone() for each, history in remembered(model).items()}, []
    with torch.no_grad():
        layer.weight.mul_(8)
    for model.checkpoint_layers in (False, True):
        recall(model, kept)
        model.zero_grad()
        with torch.no_grad():
            layer(100 * torch.ones(3, 32).bfloat16())  # somebody looks, which leaves no trace
        second.append((step(1), {each: p.grad for each, p in model.named_parameters()}))
    (histories, gradients), (again, recomputed) = second
    assert histories == again
    assert all(torch.equal(gradients[each], recomputed[each]) for each in gradients)
    assert histories[f"{name}.w"] == [8 * first[f"{name}.w"][0], first[f"{name}.w"][0]]
    assert {each: history[1] for each, history in histories.items()} == {k: v[0] for k, v in first.items()}
    limit = 2 * max(histories[f"{name}.x"])  # under a margin of one power of two
    with torch.no_grad():
        ends = [layer(torch.full((1, 32), times * limit).bfloat16()) for times in (0.5, 1, 100)]
    assert torch.equal(ends[1], ends[2])
    assert not torch.equal(ends[0], ends[1])


def test_depths_of_the_prediction_block_draw_different_numbers(
    run: Run, task: TextTask, monkeypatch: pytest.MonkeyPatch
):
    model, drawn, form = run.model.build().train(), [], Place.key
    rules = (PrecisionRule(modules="mtp.*", format="nvfp4"),)
    apply_precision(model, PrecisionConfig(rules=rules, activations="bf16"))
    monkeypatch.setattr(Place, "key", lambda self, role: drawn.append((self.name, form(self, role))) or drawn[-1][1])
    task.loss(model, task.next_batch(model, 0)[0]).total.backward()
    assert [name for name, _ in drawn].count("mtp.layers.0.eh_proj.weight") == 2 * 2
    assert len({key for _, key in drawn}) == len(drawn)


def test_the_late_switch_and_another_recipe_go_on_from_the_same_weights(short: Run, tmp_path: Path):
    """Checkpoints hold masters alone; up to the switch the run is that without one."""
    late, never = Quiet(), Quiet()
    train(of(short, "nvfp4", switch_at=0.34), tmp_path / "late", late)
    train(of(short, "nvfp4"), tmp_path / "never", never)
    assert late.losses[:2] == never.losses[:2]
    assert late.losses[2] != never.losses[2]
    started = replace(of(short, "fp8_nemotron_h"), init_from=str(tmp_path / "late"))
    train(replace(started, train=replace(short.train, steps=1)), tmp_path / "onward", Quiet())


def test_an_operand_that_is_not_finite_is_named(short: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    build = type(short.model).build

    def spoilt(self: Any) -> Any:
        model = build(self)
        model.backbone.layers[2].norm.weight.data[0] = torch.inf
        return model

    monkeypatch.setattr(type(short.model), "build", spoilt)
    with pytest.raises(NumericsError, match=r"layers\.2\.mixer\.in_proj\.weight \(forward\.x\)"):
        train(of(short, "nvfp4"), tmp_path / "run", Quiet())


def test_shares_that_cut_a_block_are_refused(run: Run):
    grid = ParallelConfig(data=1, tensor=2)
    run = replace(run, model=replace(run.model, attention=replace(run.model.attention, kv_heads=2)))
    refuse_indivisible(of(run, "fp8_nemotron_h"), grid)
    with pytest.raises(ConfigError, match=r"model\.mamba\.heads = 4 gives each .* no whole blocks of 16 numbers"):
        refuse_indivisible(of(run, "nvfp4"), grid)
    with pytest.raises(ConfigError, match="blocks of 128"):
        refuse_indivisible(of(run, "fp8_blockwise"), grid)
