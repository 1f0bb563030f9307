"""Checkpoints written in the background: the same files, taken at the right moment, and no failure goes unseen."""

import errno
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train.test_loop import CrashAt, Diary, SignalAt, result, with_train
from train.toy import ToyModelConfig, ToyRun

from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.errors import CheckpointError
from seqloom.train.interrupt import Interrupted
from seqloom.train.loop import train

RUN = with_train(ToyRun(), async_save=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of the run that saves while it waits."""
    return result(train(ToyRun(), tmp_path_factory.mktemp("whole")).path)


def files(folder: Path) -> dict[str, bytes]:
    """What must be equal: all but clocks and the setting itself."""
    left = ("state.json", "manifest.json", "run.yaml")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in left}


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Saves that take longer than the steps between them; what happens, in order."""
    told: list[str] = []
    real = RunFolder.save

    def save(self: RunFolder, step: int, *args: Any, **kwargs: Any) -> None:
        told.append(f"begin {step} in {threading.current_thread() is threading.main_thread()}")
        time.sleep(0.3)
        real(self, step, *args, **kwargs)
        told.append(f"end {step}")

    monkeypatch.setattr(RunFolder, "save", save)
    return told


def test_the_files_are_those_of_their_step_though_training_went_on(
    slow: list[str], whole: dict[str, Any], tmp_path: Path
) -> None:
    class Told(Diary):
        def on_step(self, metrics: dict[str, float]) -> None:
            slow.append(f"step {int(metrics['step'])}")

        def on_save(self, step: int, path: Path) -> None:
            assert threading.current_thread() is threading.main_thread()
            assert RunFolder(path).steps()[-1] == step
            super().on_save(step, path)

    diary = Told()
    one, other = tmp_path / "one", tmp_path / "other"
    train(with_train(RUN, keep_steps=3), one, diary)
    assert diary.saves == [5, 10, 14]
    assert slow.index("begin 5 in False") < slow.index("step 7") < slow.index("end 5")
    assert slow.index("end 5") < slow.index("begin 10 in False")
    train(with_train(ToyRun(), keep_steps=3), other)
    for step in (5, 10, 14):
        assert files(RunFolder(one).folder(step)) == files(RunFolder(other).folder(step)), step
    expected, found = dict(whole), result(one)
    assert expected.pop("run.yaml") != found.pop("run.yaml")
    assert found == expected


def test_stopped_crashed_and_resumed_it_is_the_same_run(slow: list[str], tmp_path: Path) -> None:
    undisturbed, threads = result(train(RUN, tmp_path / "whole").path), threading.active_count()
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError, match="power"):
        train(RUN, folder, CrashAt(6))  # the save of step 5 is under way
    assert RunFolder(folder).steps() == [5]
    with pytest.raises(Interrupted, match="step 11 is saved"):
        train(RUN, folder, SignalAt(11))
    assert RunFolder(folder).steps()[-1] == 11
    train(RUN, folder)
    assert result(folder) == undisturbed
    assert threading.active_count() == threads


def test_a_failed_write_ends_the_run_at_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "00000005":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        real(source, target)

    class Slow(Diary):
        def on_step(self, metrics: dict[str, float]) -> None:
            super().on_step(metrics)
            time.sleep(0.1)

    monkeypatch.setattr(os, "replace", full)
    diary = Slow()
    with pytest.raises(CheckpointError, match=r"step 5 could not be saved.*No space left on device"):
        train(RUN, tmp_path, diary)
    assert 5 <= diary.steps[-1]["step"] <= 8
    assert RunFolder(tmp_path).steps() == []
    with RunFolder(tmp_path).lock():
        pass


def test_a_failure_in_the_last_save_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = RunFolder.save

    def save(self: RunFolder, step: int, *args: Any, **kwargs: Any) -> None:
        if step == 14:
            raise CheckpointError("no room")
        real(self, step, *args, **kwargs)

    monkeypatch.setattr(RunFolder, "save", save)
    with pytest.raises(CheckpointError, match="no room"):
        train(RUN, tmp_path)
    assert RunFolder(tmp_path).steps() == [5, 10]


def test_frozen_parameters_are_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[dict[str, int]] = []
    build, model_class = ToyModelConfig.build, type(ToyModelConfig().build())
    write = model_class.write_folder

    def frozen(self: ToyModelConfig) -> torch.nn.Module:
        model = build(self)
        model.inner.requires_grad_(False)
        return model

    def watched(self: torch.nn.Module, folder: Path) -> None:
        written.append({name: tensor.data_ptr() for name, tensor in self.state_dict().items()})
        write(self, folder)

    monkeypatch.setattr(ToyModelConfig, "build", frozen)
    monkeypatch.setattr(model_class, "write_folder", watched)
    train(RUN, tmp_path / "background")
    train(replace(RUN, train=replace(RUN.train, async_save=False)), tmp_path / "at_once")
    background, at_once = written[:3], written[3:]
    assert background[0] == background[1] == background[2]  # one copy serves all saves
    assert len(at_once) == 3
    one, other = (RunFolder(tmp_path / name).folder(14) for name in ("background", "at_once"))
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
