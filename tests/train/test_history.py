"""A run folder tells its run, finished or not."""

from pathlib import Path

import pytest

from run_histories import add_sample, write_run
from seqloom.core.errors import CheckpointError, ConfigError
from seqloom.core.logs import MetricsLog
from seqloom.train.history import dotted, number, read_history


def test_measures_over_steps_units_and_seconds(tmp_path: Path) -> None:
    history = read_history(write_run(tmp_path / "run"))
    assert (history.name, history.unit, history.steps_done, history.steps_wanted) == ("run", "tokens", 40, 40)
    assert [x for x, _ in history.points("train", "loss")] == [1, 10, 20, 30, 40]
    assert [x for x, _ in history.points("train", "loss", "units")] == [2048, 20480, 40960, 61440, 81920]
    assert [x for x, _ in history.points("valid", "loss", "seconds")] == [40, 80]
    assert history.last("valid", "loss") == pytest.approx(2.6)
    assert history.measures("valid") == ["loss", "perplexity", "tokens"]


def test_a_validation_between_records_lies_between_them(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    MetricsLog(folder / "metrics.jsonl").append({"step": 15, "kind": "valid", "loss": 1.0})
    MetricsLog(folder / "metrics.jsonl").append({"step": 99, "kind": "valid", "loss": 1.0})
    assert [x for x, _ in read_history(folder).points("valid", "loss", "seconds")] == [40, 80, 30, 80]


def test_a_run_in_progress_and_one_that_has_only_begun(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=23)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 24, "kind": "tr')
    history = read_history(folder)
    assert history.steps_done == 23
    for name in ("metrics.jsonl", "data.json", "formats.json", "machine.json"):
        (folder / name).unlink()
    history = read_history(folder)
    assert (history.records, history.steps_done, history.unit, history.updated) == ([], 0, None, None)
    assert len(history.points("train", "loss", "units")) == 0


@pytest.mark.parametrize("value", [None, True, "5", float("nan"), float("inf"), 10**400, [1.0]])
def test_what_is_no_number_is_a_gap(value: object, tmp_path: Path) -> None:
    assert number(value) is None
    assert number(3) == 3.0


@pytest.mark.parametrize(
    ("name", "reason"), [("none", "it does not exist"), ("file", "it is no folder"), ("empty", "it has no")]
)
def test_what_is_no_run_is_refused_by_name(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=rf"{tmp_path / name}: not a run folder \({reason}"):
        read_history(tmp_path / name)


def test_damage_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "data.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"data\.json"):
        read_history(folder)
    write_run(tmp_path / "other")
    (tmp_path / "other/metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match="line 2 is damaged"):
        read_history(tmp_path / "other")


def test_samples_are_kept_in_the_log(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    add_sample(folder, 40, "def f(", "x):\n")
    (sample,) = read_history(folder).of("sample")
    assert (sample["step"], sample["prompt"], sample["text"]) == (40, "def f(", "x):\n")


def test_settings_have_dotted_paths() -> None:
    settings = {"a": {"b": [1, {"c": None}], "d": []}, "e": 2.5}
    assert dict(dotted(settings)) == {"a.b.0": 1, "a.b.1.c": None, "a.d": [], "e": 2.5}
