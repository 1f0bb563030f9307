"""Runs beside one another."""

from pathlib import Path

import pytest
from core.test_page import check

from run_histories import write_run
from seqloom.core.errors import ConfigError
from seqloom.core.logs import MetricsLog
from seqloom.train.compare_page import Comparison
from seqloom.train.history import read_history


def compare(*folders: Path) -> Comparison:
    return Comparison([read_history(folder) for folder in folders])


def test_measures_of_runs_that_came_differently_far(tmp_path: Path) -> None:
    comparison = compare(write_run(tmp_path / "a"), write_run(tmp_path / "b", steps=23, scale=0.5))
    measures = {measure.name: measure for measure in comparison.measures}
    assert list(measures["steps"].values) == [40, 23]
    assert measures["tokens"].cells() == ["81,920", "47,104"]
    assert measures["time"].cells() == ["1:20", "0:46"]
    assert list(measures["validation loss"].values) == pytest.approx([2.6, 1.4])
    assert measures["validation loss"].best == 1
    assert measures["least validation loss, at step"].cells() == ["40", "20"]
    assert measures["peak memory"].best == 1
    assert measures["validation perplexity"].best is None  # equal
    assert measures["steps"].best is None
    assert "validation tokens" not in measures
    assert comparison.settings == {"train.lr": [1.0, 0.5]}


def test_curves_by_step_by_tokens_and_by_time(tmp_path: Path) -> None:
    comparison = compare(
        write_run(tmp_path / "a"), write_run(tmp_path / "b", steps=400), write_run(tmp_path / "c", steps=1)
    )
    versions = comparison.losses()
    assert list(versions) == ["by step", "by tokens", "by time"]
    lines = versions["by time"].lines
    assert [(line.name, line.colour, line.faint) for line in lines] == [
        ("a", 0, False), ("b", 1, True), ("b", 1, False), ("c", 2, False)
    ]  # fmt: skip
    assert lines[0].points[-1][0] == 80.0
    assert {chart.title for chart in comparison.charts()} >= {"Validation loss", "Throughput, tokens per second"}


def test_the_page_is_whole_and_names_are_told_apart(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "x/<b>run"), write_run(tmp_path / "y/<b>run", name="'<script>'")
    comparison = compare(a, b)
    assert comparison.names == [str(a), str(b)]
    check(comparison.html())
    check(compare(a, a).html())
    assert comparison.data()["settings"] == {"name": ["tiny", "<script>"]}


def test_runs_that_count_different_things_share_no_unit(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", steps=0)
    MetricsLog(b / "metrics.jsonl").append(
        {"step": 1, "kind": "train", "loss": 1.0, "samples": 5, "samples_per_second": 2.0}
    )
    comparison = compare(a, b)
    assert comparison.unit is None
    assert list(comparison.losses()) == ["by step", "by time"]
    check(comparison.html())


def test_one_run_is_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 run given; a comparison needs two or more"):
        compare(write_run(tmp_path / "a"))
