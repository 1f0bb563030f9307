"""Numbers reach every tracker a run names, once, also after a stop or crash; TensorBoard reads its own files back."""

import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from train.test_loop import CrashAt, Diary, SignalAt
from train.toy import ToyRun

from seqloom.core.errors import ConfigError
from seqloom.core.logs import read_metrics
from seqloom.train import trackers
from seqloom.train.interrupt import Interrupted
from seqloom.train.loop import train


def tracked(name: str) -> ToyRun:
    run = ToyRun()
    return replace(run, train=replace(run.train, trackers=(name,)))


def stop_and_resume(run: ToyRun, folder: Path) -> None:
    with pytest.raises(Interrupted):
        train(run, folder, SignalAt(7))
    train(run, folder)


def test_tensorboard_shows_every_logged_number_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(RuntimeError, match="power"):
        train(tracked("tensorboard"), tmp_path, CrashAt(9))  # steps 6 and 8 were logged, step 5 was saved
    train(tracked("tensorboard"), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for kind in ("train", "valid"):
        lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == kind]
        seen = events.Scalars(f"{kind}/loss")
        assert [event.step for event in seen] == [line["step"] for line in lines]
        assert [event.value for event in seen] == pytest.approx([line["loss"] for line in lines])
    assert "train/step" not in events.Tags()["scalars"]


def test_an_unknown_tracker_is_refused_and_the_known_ones_are_listed(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="unknown tracker 'tensorbored'; found here: mlflow, tensorboard, trackio, wandb"
    ):
        train(tracked("tensorbored"), tmp_path)


def test_a_tracker_without_its_package_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        train(tracked("wandb"), tmp_path)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_resumed_run_goes_on_in_the_same_record(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = MagicMock(spec_set=["init"])
    monkeypatch.setitem(sys.modules, name, module)
    stop_and_resume(tracked(name), tmp_path)
    first, second = (call.kwargs for call in module.init.call_args_list)
    key = "id" if name == "wandb" else "name"
    assert first[key] == second[key]
    assert first["resume"] == "allow"
    assert first["config"]["train"]["steps"] == 14
    run = module.init.return_value
    assert [call.kwargs["step"] for call in run.log.call_args_list] == [1, 2, 4, 4, 6, 8, 8, 10, 12, 12, 14, 14]
    assert run.finish.call_count == 2


def test_mlflow_goes_on_in_the_same_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = MagicMock(spec_set=["start_run", "log_dict", "log_metrics", "end_run"])
    module.start_run.return_value = SimpleNamespace(info=SimpleNamespace(run_id="abc"))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    stop_and_resume(tracked("mlflow"), tmp_path)
    assert [call.kwargs["run_id"] for call in module.start_run.call_args_list] == [None, "abc"]
    assert module.log_metrics.call_count == 12
    assert module.end_run.call_count == 2


class Foreign:
    """A tracker of another package, with a fault to order."""

    fault = ""
    done: list[str] = []  # noqa: RUF012

    def __init__(self, folder: Path, run: Any, first_step: int) -> None:
        self._do("start")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._do(f"log {step}")

    def close(self) -> None:
        self._do("close")

    def _do(self, what: str) -> None:
        Foreign.done.append(what)
        if what == Foreign.fault:
            raise RuntimeError("no network")


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> type[Foreign]:
    module = ModuleType("foreign")
    module.Foreign = Foreign
    monkeypatch.setitem(sys.modules, "foreign", module)
    monkeypatch.setattr(trackers, "entry_points", lambda group: [EntryPoint("mine", "foreign:Foreign", group)])
    monkeypatch.setattr(Foreign, "done", [])
    return Foreign


def test_a_tracker_of_another_package_is_closed_also_after_an_error(tmp_path: Path, foreign: type[Foreign]) -> None:
    with pytest.raises(Interrupted):
        train(tracked("mine"), tmp_path, SignalAt(2))
    assert foreign.done == ["start", "log 1", "log 2", "close"]


def test_a_tracker_that_does_not_start_is_refused(
    tmp_path: Path, foreign: type[Foreign], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "fault", "start")
    with pytest.raises(ConfigError, match=r"train\.trackers: 'mine' does not start: no network"):
        train(tracked("mine"), tmp_path)


def test_trouble_of_a_tracker_is_reported_once_and_does_not_end_the_run(
    tmp_path: Path, foreign: type[Foreign], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "fault", "log 4")
    diary = Diary()
    train(tracked("mine"), tmp_path, diary)
    assert diary.messages == ["tracker 'mine' failed and is left out from here on: no network"]
    assert foreign.done[-1] == "log 4"
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")][-1] == 14
