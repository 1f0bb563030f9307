"""Signals at every kind of moment: what is in work is finished or given up, and the run goes on as if undisturbed."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from train.test_loop import Diary, SignalAt, result
from train.toy import ToyModelConfig, ToyRun, ToyTask, ToyTaskConfig

from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.logs import read_metrics
from seqloom.train.interrupt import Interrupted, StopRequest
from seqloom.train.loop import train


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of the run that nothing disturbed."""
    return result(train(ToyRun(), tmp_path_factory.mktemp("whole")).path)


def press(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


class Once:
    """Presses Ctrl-C in the n-th call of something, and lets it go on."""

    def __init__(self, real: Any, call: int, after: bool = False) -> None:
        self.real, self.calls, self.call, self.after = real, 0, call, after

    def __get__(self, owner: Any, kind: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.call and not self.after:
                press()
            given = self.real(owner, *args, **kwargs)
            if self.calls == self.call and self.after:
                press()
            return given

        return call


@pytest.mark.parametrize(("call", "step"), [(1, 4), (3, 12), (4, 14)])
def test_an_evaluation_is_given_up_and_made_when_the_run_goes_on(
    call: int, step: int, whole: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ToyTask, "evaluate", Once(ToyTask.evaluate, call))
        with pytest.raises(Interrupted, match=f"step {step} is saved"):
            train(ToyRun(), tmp_path)
    assert RunFolder(tmp_path).steps()[-1] == step
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert (last["kind"] != "valid", last["step"]) == (True, step)
    diary = Diary()
    train(ToyRun(), tmp_path, diary)
    assert diary.evals[0]["step"] == step
    assert result(tmp_path) == whole


def test_an_evaluation_given_up_twice_is_made_in_the_end(whole: dict[str, Any], tmp_path: Path) -> None:
    for call in (1, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ToyTask, "evaluate", Once(ToyTask.evaluate, call))
            with pytest.raises(Interrupted, match="step 4 is saved"):
                train(ToyRun(), tmp_path)
    train(ToyRun(), tmp_path)
    assert result(tmp_path) == whole


@pytest.mark.parametrize("part", ["data", "model"])
def test_preparation_is_given_up_at_once(part: str, whole: dict[str, Any], tmp_path: Path) -> None:
    owner, name = {"data": (ToyTaskConfig, "build"), "model": (ToyModelConfig, "build")}[part]
    for _ in range(2):  # before the first step, and before going on after step 7
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, Once(getattr(owner, name), 1))
            patch.setattr(ToyTask, "next_batch", lambda *args: pytest.fail("it went on"))
            with pytest.raises(Interrupted) as caught:
                train(ToyRun(), tmp_path)
        assert caught.value.exit_code == 130
        steps = RunFolder(tmp_path).steps()
        assert str(caught.value).startswith(
            "interrupted; step 7 is saved" if steps else "interrupted; no step was done, and the same command goes on"
        )
        if not steps:
            with pytest.raises(Interrupted):
                train(ToyRun(), tmp_path, SignalAt(7))
    train(ToyRun(), tmp_path)
    assert result(tmp_path) == whole


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("call", "step"), [(1, 5), (2, 10)])
def test_a_save_is_finished(
    call: int, step: int, after: bool, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a signal between the end of a save and the next look at it."""
    monkeypatch.setattr(RunFolder, "save", Once(RunFolder.save, call, after))
    with pytest.raises(Interrupted, match=f"step {step} is saved"):
        train(ToyRun(), tmp_path)
    train(ToyRun(), tmp_path)
    assert result(tmp_path) == whole


def test_a_signal_in_the_last_save_leaves_nothing_to_do(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunFolder, "save", Once(RunFolder.save, 3))
    train(ToyRun(), tmp_path)
    assert result(tmp_path) == whole


def test_a_signal_in_the_last_step_leaves_its_evaluation_to_do(whole: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="step 14 is saved"):
        train(ToyRun(), tmp_path, SignalAt(14))
    train(ToyRun(), tmp_path)
    assert result(tmp_path) == whole


def test_attempted_work_is_left_where_it_was_and_later_work_not_begun() -> None:
    done: list[int] = []

    def work() -> None:
        done.append(1)
        try:
            press()
        except Exception:  # what a library may do on the way
            done.append(2)
        done.append(3)

    with StopRequest() as stop:
        assert stop.attempt(lambda: 5) == 5
        assert stop.attempt(work) is None
        assert stop.signal == signal.SIGINT
        assert stop.attempt(lambda: done.append(4)) is None
    assert done == [1]


def test_a_second_ctrl_c_stops_at_once_and_handlers_come_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(KeyboardInterrupt):
        train(ToyRun(), tmp_path, SignalAt(3, times=2))
    assert RunFolder(tmp_path).steps() == []
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
    with RunFolder(tmp_path).lock():
        pass


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        train(ToyRun(), tmp_path, SignalAt(3))
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_process_ends_with_the_code_of_its_signal(whole: dict[str, Any], tmp_path: Path) -> None:
    """Each is forked from one that has imported everything and computes nothing."""
    script = """
import os, sys, time
import torch._dynamo  # by a first optimizer, for seconds
from train.toy import ToyRun
from seqloom.core.errors import SeqloomError
from seqloom.train.loop import train
from seqloom.train.observer import Observer

class Slow(Observer):
    def on_step(self, metrics):
        print(metrics["step"], os.getpid(), flush=True)
        time.sleep(0.2)

for folder in sys.argv[1:]:
    if os.fork():
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
        continue
    try:
        train(ToyRun(), folder, Slow())
    except SeqloomError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit()
"""
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 138}
    folders = [tmp_path / number.name for number in codes]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, folders)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for number, code in codes.items():
        steps, places = zip(*(process.stdout.readline().split() for _ in range(3)), strict=True)
        assert steps == ("1", "2", "3")
        os.kill(int(places[0]), number)
        while len(told := process.stdout.readline().split()) == 2:
            pass
        assert told == [str(code)]
    _, errors = process.communicate(timeout=60)
    assert [line.partition(";")[0] for line in errors.splitlines()] == ["interrupted"] * 3, errors
    for folder in folders:
        train(ToyRun(), folder)
        assert result(folder) == whole
