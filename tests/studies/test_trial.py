import json
import signal
from dataclasses import replace

import pytest
import torch

from seqloom.core.errors import CheckpointError
from seqloom.studies.output_norms import by_layer_kind
from seqloom.studies.trial import Trial, run_trial, stored_trial
from seqloom.systems.hybrid_lm.task import TextTask
from seqloom.train.interrupt import Interrupted
from seqloom.train.observer import Observer


def train(run, path, judge=lambda losses: None) -> Trial:
    return run_trial(run, path, Observer(), judge=judge, watched=by_layer_kind)


def test_a_trial_is_what_the_loop_trained_and_leaves_only_its_numbers(narrow_run, tmp_path):
    from seqloom.core.logs import read_metrics
    from seqloom.train.loop import train as train_whole

    trial = train(narrow_run, tmp_path / "trials" / "one.json")
    whole = train_whole(narrow_run, tmp_path / "whole", Observer())
    records = read_metrics(whole.metrics_path)
    (valid,) = [record["loss"] for record in records if record["kind"] == "valid"]
    assert trial.valid["loss"] == valid
    assert trial.losses[-1] == pytest.approx(
        [record["loss"] for record in records if record["kind"] == "train"][-1], rel=1e-5
    )
    assert len(trial.losses) == narrow_run.train.steps
    assert trial.step_seconds > 0
    assert (trial.ended, trial.finite) == ("", True)
    assert [one["step"] for one in trial.watched] == list(range(1, 9))
    assert {name for name in trial.watched[0] if name != "step"} == {
        f"output_norm.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    }
    assert [path.name for path in (tmp_path / "trials").iterdir()] == ["one.json"]


def test_a_stored_trial_is_read_only_for_its_own_run(narrow_run, tmp_path):
    path = tmp_path / "one.json"
    assert stored_trial(narrow_run, path) is None
    trial = train(narrow_run, path)
    assert stored_trial(narrow_run, path) == trial
    assert stored_trial(replace(narrow_run, seed=1), path) is None
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    assert stored_trial(narrow_run, path) is None
    path.write_text(json.dumps({"losses": []}), encoding="utf-8")
    assert stored_trial(narrow_run, path) is None
    with pytest.raises(CheckpointError, match="cannot be read"):
        stored_trial(narrow_run, tmp_path)


def test_a_judge_ends_it(narrow_run, tmp_path):
    trial = train(narrow_run, tmp_path / "one.json", lambda losses: "enough" if len(losses) == 3 else None)
    assert (len(trial.losses), trial.ended, trial.finite, trial.valid) == (3, "enough", True, {})
    assert stored_trial(narrow_run, tmp_path / "one.json") == trial


def test_a_loss_that_leaves_the_finite_numbers_is_a_result(narrow_run, tmp_path, monkeypatch):
    after_step = TextTask.after_step

    def spoil(self, model, step):
        if step == 4:
            with torch.no_grad():
                model.lm_head.weight.fill_(float("inf"))
        return after_step(self, model, step)

    monkeypatch.setattr(TextTask, "after_step", spoil)
    trial = train(narrow_run, tmp_path / "one.json")
    assert len(trial.losses) == 5
    assert not trial.finite
    assert trial.ended.startswith("step 5: the loss is nan")
    assert stored_trial(narrow_run, tmp_path / "one.json") == trial


def test_a_place_that_cannot_be_written_is_named(narrow_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/trials/one\.json: cannot be written"):
        train(narrow_run, tmp_path / "file" / "trials" / "one.json")


def test_an_interrupted_trial_is_not_stored(narrow_run, tmp_path):
    def press_ctrl_c(losses: list[float]) -> None:
        if len(losses) == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="finished runs are stored") as stop:
        train(narrow_run, tmp_path / "one.json", press_ctrl_c)
    assert stop.value.exit_code == 130
    assert not list(tmp_path.iterdir())
