"""Steps that cannot be taken: batches are left out, the rest is learned as if nothing had been, and resuming agrees."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from train.test_loop import CrashAt, Diary, SignalAt, result, with_train
from train.toy import ToyModelConfig, ToyRun, ToyTask, ToyTaskConfig

from seqloom.core.checkpoint.run_folder import RunFolder
from seqloom.core.errors import NumericsError
from seqloom.core.logs import read_metrics
from seqloom.train.interrupt import Interrupted
from seqloom.train.loop import train


def faulty(policy: str, step: int, length: int = 1, fault: str = "nan_loss", **changes: Any) -> ToyRun:
    task = ToyTaskConfig(fault=fault, fault_step=step, fault_length=length, micro=5)
    return with_train(ToyRun(task=task), on_not_finite=policy, **changes)


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == kind]


class Stop(SignalAt, Diary):
    def __init__(self, step: int) -> None:
        Diary.__init__(self)
        SignalAt.__init__(self, step)


class Crash(CrashAt, Diary):
    def __init__(self, step: int) -> None:
        Diary.__init__(self)
        CrashAt.__init__(self, step)


def left_out(folder: Path) -> list[list[int]]:
    found = RunFolder(folder).open_latest()
    assert found is not None
    return json.loads((found[1] / "state.json").read_text())["left_out"]


@pytest.mark.parametrize("fault", ["nan_loss", "nan_gradient"])
def test_a_batch_is_left_out_and_the_step_takes_the_next_one(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = Diary()
    run = faulty("skip", 7, 2, fault)
    run = replace(run, model=ToyModelConfig(dropout=0.0))
    place = train(run, tmp_path / "run", diary)
    assert [metrics["step"] for metrics in diary.steps] == list(range(1, 15))
    assert [metrics["after"] for metrics in diary.steps] == [*range(7), *range(9, 16)]
    assert left_out(place.path) == [[7, 7], [8, 8]]
    assert lines(place.path, "left_out") == [
        {"step": 8, "kind": "left_out", "first_batch": batch, "last_batch": batch} for batch in (7, 8)
    ]
    assert diary.messages[0].startswith("step 7: the ")
    assert diary.messages[0].endswith("; batch 7 left out, going on after step 7")

    # Exactly the run that never had these batches.
    next_batch = ToyTask.next_batch
    monkeypatch.setattr(ToyTask, "next_batch", lambda self, model, n: next_batch(self, model, n + 2 * (n >= 7)))
    undisturbed = train(replace(run, task=ToyTaskConfig(micro=5)), tmp_path / "undisturbed")
    for name in ("model.safetensors", "optim.safetensors"):
        assert result(place.path)[name] == result(undisturbed.path)[name], name


def test_what_a_refused_batch_counted_is_forgotten(tmp_path: Path) -> None:
    diary = Diary()
    train(faulty("skip", 3, 1, "nan_gradient"), tmp_path, diary)
    run = ToyRun()
    for metrics in diary.steps:
        batch = ToyTask(run).next_batch(None, int(metrics["after"]))
        assert metrics["seen"] == sum(int(counted.sum()) for _, _, counted in batch)


def test_going_back_leaves_out_everything_since_the_checkpoint(tmp_path: Path) -> None:
    diary = Diary()
    place = train(faulty("roll_back", 8), tmp_path, diary)  # saved at 5; steps 6, 7 and 8 took batches 5, 6 and 7
    assert [metrics["step"] for metrics in diary.steps] == [*range(1, 9), *range(6, 15)]
    assert [metrics["after"] for metrics in diary.steps] == [*range(8), *range(9, 18)]
    assert left_out(place.path) == [[5, 8]]
    assert [line["step"] for line in lines(place.path, "train")] == [1, 2, 4, 6, 8, 10, 12, 14]
    assert [line["step"] for line in lines(place.path, "valid")] == [4, 8, 12, 14]
    assert lines(place.path, "left_out") == [{"step": 6, "kind": "left_out", "first_batch": 5, "last_batch": 8}]
    assert diary.messages[0].endswith("; batches 5 to 8 left out, going on after step 5")


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("policy", ["skip", "roll_back"])
def test_crashed_anywhere_the_same_is_left_out(policy: str, background: bool, tmp_path: Path) -> None:
    run = faulty(policy, 8, 2, async_save=background)
    undisturbed = result(train(run, tmp_path / "whole", Diary()).path)
    assert undisturbed["state"]["left_out"] == ([[8, 8], [9, 9]] if policy == "skip" else [[5, 9]])
    for step in (7, 9, 11):
        with pytest.raises(RuntimeError, match="power"):
            train(run, tmp_path / str(step), Crash(step))
        assert result(train(run, tmp_path / str(step), Diary()).path) == undisturbed


def test_stopped_anywhere_the_same_batches_are_skipped(tmp_path: Path) -> None:
    run = faulty("skip", 8, 2)
    undisturbed = result(train(run, tmp_path / "whole", Diary()).path)
    for step in (7, 8, 9):
        with pytest.raises(Interrupted):
            train(run, tmp_path / str(step), Stop(step))
        assert result(train(run, tmp_path / str(step), Diary()).path) == undisturbed


def test_a_stop_saves_and_that_is_then_what_to_go_back_to(tmp_path: Path) -> None:
    run = faulty("roll_back", 8)
    with pytest.raises(Interrupted):
        train(run, tmp_path, Stop(7))
    assert left_out(train(run, tmp_path, Diary()).path) == [[7, 8]]


def test_too_many_in_a_row_end_the_run_and_what_was_done_stays(tmp_path: Path) -> None:
    for policy in ("skip", "roll_back"):
        with pytest.raises(NumericsError, match=r"left out 3 times in a row at this step \(train\.not_finite_limit\)"):
            train(faulty(policy, 7, 50, not_finite_limit=3), tmp_path / policy, Diary())
        assert RunFolder(tmp_path / policy).steps() == [5]
    place = train(faulty("skip", 7, 3, not_finite_limit=3), tmp_path / "just", Diary())
    assert left_out(place.path) == [[7, 7], [8, 8], [9, 9]]


def test_nothing_to_go_back_to_is_said(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match="there is no checkpoint yet to roll back to"):
        train(faulty("roll_back", 2), tmp_path)


def test_a_run_that_stopped_may_go_on_with_another_policy(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match=r"train\.on_not_finite can leave such batches out"):
        train(faulty("stop", 7), tmp_path)
    place = train(faulty("skip", 7), tmp_path, Diary())
    assert left_out(place.path) == [[7, 7]]
