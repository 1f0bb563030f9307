"""A run is a pure function of its settings: micro-batches, stops, crashes and signals leave no trace in it."""

import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train.toy import ToyModelConfig, ToyRun, ToyTask, ToyTaskConfig

from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.checkpoint.tensors import load_tensors
from seqloom.core.errors import CheckpointError, ConfigError, DataError
from seqloom.core.logs import read_metrics
from seqloom.train.interrupt import Interrupted
from seqloom.train.loop import _step, train
from seqloom.train.monitors import Monitor
from seqloom.train.observer import Observer, StartReport
from seqloom.train.representations import Chosen
from seqloom.train.schedules import factor
from seqloom.train.state import TrainState

CLOCKS = {"seconds", "samples_per_second", "memory_bytes"}


class Diary(Observer):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.reports: list[StartReport] = []
        self.steps: list[dict[str, float]] = []
        self.evals: list[dict[str, float]] = []
        self.saves: list[int] = []
        self.messages: list[str] = []

    def on_start(self, report: StartReport) -> None:
        self.reports.append(report)

    def on_step(self, metrics: dict[str, float]) -> None:
        self.steps.append(metrics)

    def on_eval(self, metrics: dict[str, float]) -> None:
        self.evals.append(metrics)

    def on_save(self, step: int, path: Path) -> None:
        self.saves.append(step)

    def on_message(self, text: str) -> None:
        self.messages.append(text)


class SignalAt(Observer):
    """Presses Ctrl-C, or its like, during a step."""

    def __init__(self, step: int, number: int = signal.SIGINT, times: int = 1) -> None:
        self.step, self.number, self.times = step, number, times

    def on_step(self, metrics: dict[str, float]) -> None:
        if metrics["step"] == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


class CrashAt(Observer):
    """Dies during a step that was logged and not saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, metrics: dict[str, float]) -> None:
        if metrics["step"] == self.step:
            raise RuntimeError("power")


def result(folder: Path) -> dict[str, Any]:
    """All that a finished run leaves, without what the clock decides."""
    _, last = RunFolder(folder).open_latest()
    files = {
        path.name: path.read_bytes() for path in last.iterdir() if path.name not in ("state.json", "manifest.json")
    }
    state = json.loads((last / "state.json").read_text())
    metrics = [
        {name: value for name, value in line.items() if name not in CLOCKS}
        for line in read_metrics(folder / "metrics.jsonl")
    ]
    return {**files, "state": {name: value for name, value in state.items() if name != "seconds"}, "metrics": metrics}


def with_train(run: ToyRun, **changes: object) -> ToyRun:
    return replace(run, train=replace(run.train, **changes))


def with_task(run: ToyRun, **changes: object) -> ToyRun:
    return replace(run, task=replace(run.task, **changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of the run that nothing disturbed."""
    return result(train(ToyRun(), tmp_path_factory.mktemp("whole")).path)


def test_it_learns_and_says_so(tmp_path: Path) -> None:
    diary = Diary()
    run = with_train(ToyRun(), steps=60, evaluate_every=20, save_every=30)
    place = train(run, tmp_path / "run", diary)
    losses = [metrics["loss"] for metrics in diary.steps]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert [metrics["step"] for metrics in diary.steps] == list(range(1, 61))
    assert [metrics["step"] for metrics in diary.evals] == [20, 40, 60]
    assert diary.saves == [30, 60] == place.steps()
    assert diary.messages == []
    (report,) = diary.reports
    assert report.first_step == 0
    assert report.parameters == 6 * 12 + 12 + 2 * 12 + 12 * 6 + 6 + 1
    assert report.run.precision.activations in ("fp32", "bf16")
    assert json.loads((place.path / "data.json").read_text()) == {"rows": 12}
    assert (place.path / "asset.txt").read_text() == "asset"


def test_the_log_holds_what_was_learned(whole: dict[str, Any]) -> None:
    lines = whole["metrics"]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 4, 6, 8, 10, 12, 14]
    assert [line["step"] for line in lines if line["kind"] == "valid"] == [4, 8, 12, 14]
    first, run = lines[0], ToyRun()
    units = int(sum(counted.sum() for _, _, counted in ToyTask(run).next_batch(None, 0)))
    assert first["samples"] == units
    assert first["objective"] == first["loss"]
    assert first["size"] == pytest.approx(0.8, abs=0.1)  # mean of |x| of a normal number
    assert first["after"] == 0.0
    assert first["lr"] == pytest.approx(0.01 * factor(0, 14, run.train.schedule))


@pytest.mark.parametrize("micro", [1, 5, 6])
def test_micro_batches_never_change_the_step(micro: int, tmp_path: Path) -> None:
    def final(size: int) -> dict[str, torch.Tensor]:
        run = ToyRun(task=ToyTaskConfig(micro=size), model=ToyModelConfig(dropout=0.0))
        run = with_train(run, optimizer=replace(run.train.optimizer, kind="adamw", eps=1e-3))
        return load_tensors(train(run, tmp_path / str(size)).path / "model.safetensors")

    at_once, in_parts = final(12), final(micro)
    for name, tensor in at_once.items():
        torch.testing.assert_close(in_parts[name], tensor, atol=1e-6, rtol=1e-6)


def test_the_gradient_is_that_of_the_mean_over_units_and_clipped() -> None:
    class Recorder:
        """Stands in for the optimizers and keeps what they would be given."""

        def step(self, factor: float) -> None:
            self.gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    run = with_train(ToyRun(model=ToyModelConfig(dropout=0.0)), clip_norm=0.05)
    model, task, recorder = run.model.build(), ToyTask(run), Recorder()
    metrics = _step(
        with_task(run, micro=5),
        ToyTask(with_task(run, micro=5)),
        TrainState(model, recorder),
        Monitor(model, None, print),
        Chosen(),
        first=True,
    )

    loss = task.loss(model, task.next_batch(model, 0)[0])
    (loss.total / loss.units).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    assert norm > 0.1
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(recorder.gradients[name], parameter.grad, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_stopped_and_resumed_it_is_the_same_run(number: int, whole: dict[str, Any], tmp_path: Path) -> None:
    for stop in (1, 2, 7, 10, 13):
        with pytest.raises(Interrupted) as caught:
            train(ToyRun(), tmp_path, SignalAt(stop, number))
        assert caught.value.step == stop
        assert caught.value.exit_code == 128 + number
    diary = Diary()
    train(ToyRun(), tmp_path, diary)
    assert diary.reports[0].first_step == 13
    assert result(tmp_path) == whole


def test_after_a_crash_it_is_the_same_run(whole: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power"):
        train(ToyRun(), tmp_path, CrashAt(9))
    assert RunFolder(tmp_path).steps() == [5]
    train(ToyRun(), tmp_path)
    assert result(tmp_path) == whole


def test_batches_that_depend_on_earlier_ones_go_on_where_they_were(tmp_path: Path) -> None:
    run = ToyRun(task=ToyTaskConfig(walks=True))
    train(run, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(run, tmp_path / "parts", SignalAt(3))
    with pytest.raises(RuntimeError, match="power"):
        train(run, tmp_path / "parts", CrashAt(9))
    train(run, tmp_path / "parts")
    assert result(tmp_path / "parts") == result(tmp_path / "whole")
    assert "task.safetensors" not in {path.name for path in (tmp_path / "whole").iterdir()}


def test_a_finished_run_stays_as_it_is(whole: dict[str, Any], tmp_path: Path) -> None:
    train(ToyRun(), tmp_path)
    diary = Diary()
    train(ToyRun(), tmp_path, diary)
    assert diary.steps == []
    assert result(tmp_path) == whole


def test_it_trains_outside_the_main_thread(tmp_path: Path, whole: dict[str, Any]) -> None:
    thread = threading.Thread(target=train, args=(ToyRun(), tmp_path))
    thread.start()
    thread.join()
    assert result(tmp_path) == whole


def test_settings_that_only_watch_store_or_place_may_change(whole: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(with_train(ToyRun(), save_every=3, evaluate_every=1), tmp_path, SignalAt(6))
    train(replace(with_train(ToyRun(), activation_checkpointing=True), name="renamed"), tmp_path)
    changed = result(tmp_path)
    assert changed["model.safetensors"] == whole["model.safetensors"]
    assert changed["optim.safetensors"] == whole["optim.safetensors"]
    assert changed["rng.safetensors"] == whole["rng.safetensors"]


def test_another_run_in_the_folder_is_refused_by_its_settings(tmp_path: Path) -> None:
    train(with_train(ToyRun(), steps=3), tmp_path)
    before = result(tmp_path)
    other = with_task(with_train(ToyRun(seed=4), steps=5), rows=24)
    with pytest.raises(CheckpointError) as caught:
        train(other, tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[1:] == [
        "  seed: 0 there, 4 here", "  task.rows: 12 there, 24 here", "  train.steps: 3 there, 5 here",
    ]  # fmt: skip
    assert result(tmp_path) == before


def test_changed_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(with_train(ToyRun(), steps=3), tmp_path)
    monkeypatch.setattr(ToyTask, "fingerprint", lambda self: "other")
    with pytest.raises(DataError, match=r"data changed.*data then, other now"):
        train(with_train(ToyRun(), steps=3), tmp_path)


def test_a_damaged_checkpoint_is_reported_and_passed_over(whole: dict[str, Any], tmp_path: Path) -> None:
    train(ToyRun(), tmp_path)
    weights = RunFolder(tmp_path).folder(14) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    diary = Diary()
    train(ToyRun(), tmp_path, diary)
    assert diary.reports[0].first_step == 10
    assert "model.safetensors" in diary.messages[0]
    assert result(tmp_path) == whole


def test_activation_checkpointing_needs_a_model_that_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = with_train(ToyRun(), activation_checkpointing=True, steps=1)
    built: list[Any] = []
    original = type(run.model).build

    def build(self: Any) -> Any:
        built.append(original(self))
        return built[-1]

    monkeypatch.setattr(type(run.model), "build", build)
    train(run, tmp_path / "can")
    assert built[-1].checkpoint_layers is True

    monkeypatch.setattr(type(run.model), "build", lambda self: torch.nn.Linear(6, 1))
    with pytest.raises(ConfigError, match=r"train\.activation_checkpointing"):
        train(run, tmp_path / "cannot")


def test_threads_are_set_for_the_run_only(tmp_path: Path) -> None:
    seen: list[int] = []

    class Count(Observer):
        def on_step(self, metrics: dict[str, float]) -> None:
            seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    train(with_train(ToyRun(), steps=1, threads=before + 1), tmp_path, Count())
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_time_adds_up_over_sessions(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(ToyRun(), tmp_path, SignalAt(4))
    state = RunFolder(tmp_path).folder(4) / "state.json"
    spent = json.loads(state.read_text())["seconds"]
    diary = Diary()
    train(ToyRun(), tmp_path, diary)
    assert 0 < spent < diary.steps[0]["seconds"] < diary.steps[-1]["seconds"]


def test_watching_the_inside_changes_nothing_and_is_logged(whole: dict[str, Any], tmp_path: Path) -> None:
    watched = with_train(ToyRun(), monitor_every=4)
    with pytest.raises(Interrupted):
        train(watched, tmp_path, SignalAt(7))
    train(watched, tmp_path)
    found = result(tmp_path)
    monitors = [line for line in found["metrics"] if line["kind"] == "monitor"]
    assert [line["step"] for line in monitors] == [1, 4, 8, 12]
    assert {"outer.output_norm", "outer.gradient_norm", "head.update_ratio"} <= monitors[0].keys()
    assert [line for line in found["metrics"] if line["kind"] != "monitor"] == whole["metrics"]
    names = whole.keys() - {"run.yaml", "metrics"}
    assert {name: found[name] for name in names} == {name: whole[name] for name in names}
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "machine.json").read_text())["parameters"] == 187
