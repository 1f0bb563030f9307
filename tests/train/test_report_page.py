"""The report shows what a run has, whatever it has, in bounded time."""

import json
from pathlib import Path

import pytest
from core.test_page import HOSTILE, check

from run_histories import add_sample, train_record, write_run
from seqloom.core.charts import HeatMap, LineChart
from seqloom.core.errors import ConfigError
from seqloom.core.logs import MetricsLog
from seqloom.train.history import read_history
from seqloom.train.report_page import (
    CELLS,
    course,
    headline,
    inside,
    keep_report,
    losses,
    report,
    report_charts,
    write_report,
)


def test_the_page_tells_the_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "my run")
    add_sample(folder, 20, "old", "text")
    add_sample(folder, 40, "def f(", "x): pass")
    path = write_report(folder)
    assert path == folder / "report.html"
    html = path.read_text(encoding="utf-8")
    check(html)
    for said in (
        "<h1>my run</h1>", "hybrid_lm/tiny · finished · A Processor", "40 of 40", "4.9M", "81.92k", "1:20", "700 MB",
        "texts/", "12,345", "Left out of texts/: duplicate 4",
        "<mark>said</mark>learned", "<mark>def f(</mark>x): pass",
        "modules in bf16", "trackers: []", "Learning rate", "Largest attention logit",
    ):  # fmt: skip
        assert said in html, said
    assert "<mark>old</mark>" not in html


def test_charts_show_training_validation_and_the_inside(tmp_path: Path) -> None:
    history = read_history(write_run(tmp_path / "run"))
    versions = losses(history)
    assert list(versions) == ["by step", "by step, logarithmic", "by tokens"]
    assert [line.name for line in versions["by step"].lines] == ["training", "validation"]
    assert versions["by step, logarithmic"].log_x
    titles = [chart.title for chart in course(history)]
    assert titles == [
        "Learning rate", "Gradient norm", "Throughput", "Peak memory", "Bits per byte", "Max vio", "Perplexity"
    ]  # fmt: skip
    found = inside(history)
    assert list(found) == ["output_norm", "zero_gradients", "logit_max", "max_vio"]
    norms = found["output_norm"]
    assert isinstance(norms, HeatMap)
    assert list(norms.columns) == [1, 10, 20, 30, 40]
    assert norms.rows["backbone.layers.5.mixer.in_proj"][1] == pytest.approx(1.5)
    assert isinstance(found["logit_max"], LineChart)
    assert len(report_charts(history)) == 2 + 7 + 4


def test_a_long_training_is_smoothed_over_its_raw_line(tmp_path: Path) -> None:
    history = read_history(write_run(tmp_path / "run", steps=400, wanted=400))
    raw, smoothed, _ = losses(history)["by step"].lines
    assert raw.faint
    assert smoothed.name == "training, smoothed"


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_that_has_hardly_begun(steps: int, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=steps)
    for name in ("data.json", "formats.json", "machine.json"):
        (folder / name).unlink()
    html = report(read_history(folder))
    check(html)
    assert ("after step 1" if steps else "not begun") in html
    assert ("nothing recorded yet" in html) == (steps == 0)


def test_values_that_are_missing_or_no_numbers_are_gaps(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    log = MetricsLog(folder / "metrics.jsonl")
    log.append(train_record(50) | {"loss": float("nan"), "grad_norm": "much", "lr": None, "tokens": None})
    log.append({"step": 60, "kind": "train"})
    log.append({"step": 60, "kind": "valid", "loss": None})
    log.append({"step": 60, "kind": "monitor", "backbone.layers.0.mixer.in_proj.output_norm": None, "odd": 1.0})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 70, "kind": "train", "loss": 1e400}\n{"step": 71, "kind": 5}\n{"step": 72}\n')
    html = report(read_history(folder))
    check(html)
    assert "nan" not in html
    assert headline(read_history(folder))["training loss"] == "3.2"


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "<img src=x onerror=alert(1)>", name="'<script>alert(2)</script>'")
    log = MetricsLog(folder / "metrics.jsonl")
    log.append(train_record(50) | {HOSTILE: 1.0})
    log.append({"step": 50, "kind": "monitor", f"a{HOSTILE}.output_norm": 1.0, HOSTILE: 2.0})
    add_sample(folder, 50, HOSTILE, HOSTILE)
    hostile = {"source": HOSTILE, "skipped": {HOSTILE: 3}, "tokens": HOSTILE, "share": HOSTILE}
    data = {"sources": [hostile], "example": [{"text": HOSTILE, "target": 1}], HOSTILE: [HOSTILE]}
    data = json.loads(json.dumps(data).replace("\\ud800", "?"))
    (folder / "data.json").write_text(json.dumps(data))
    (folder / "formats.json").write_text(json.dumps({"a": "<b>"}))
    (folder / "machine.json").write_text(json.dumps({"machine": "<i>", "parameters": "<b>"}))
    html = write_report(folder, tmp_path / "out.html").read_text(encoding="utf-8")
    check(html)


@pytest.mark.parametrize(
    "data", [{"sources": 5, "example": "x"}, {"sources": [], "example": []}, {"sources": [{}]}, {"rows": 12}]
)
def test_data_reports_of_other_tasks_are_shown_as_facts(data: dict[str, object], tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "data.json").write_text(json.dumps(data))
    check(report(read_history(folder)))


def test_the_page_of_a_hundred_thousand_records_stays_small(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=1)
    lines = [json.dumps(train_record(step)) for step in range(2, 100_002)]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n".join(lines) + "\n")
    path = write_report(folder)
    assert path.stat().st_size < 2_000_000
    check(path.read_text(encoding="utf-8"))


def test_heat_maps_are_bounded(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=1)
    log = MetricsLog(folder / "metrics.jsonl")
    for step in range(2, 600):
        log.append({"step": step, "kind": "monitor", **{f"layers.{n}.output_norm": 1.0 + n for n in range(30)}})
    heat = inside(read_history(folder))["output_norm"]
    assert isinstance(heat, HeatMap)
    assert len(heat.columns) * len(heat.rows) <= CELLS
    assert (heat.columns[0], heat.columns[-1]) == (1, 599)


def test_trouble_with_the_report_stops_no_training(tmp_path: Path) -> None:
    said: list[str] = []
    folder = write_run(tmp_path / "run")
    (folder / "report.html").mkdir()
    keep_report(folder, said.append)
    assert len(said) == 1
    assert said[0].startswith(f"{folder / 'report.html'} was not written: ")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report(folder)
