from pathlib import Path

import pytest

from seqloom.core.charts import HeatMap, Line, LineChart
from seqloom.core.errors import ConfigError
from seqloom.core.png import write_png

LINE = Line(name="a", points=[(1, 2.0), (2, None), (3, 1e300)])
CHARTS = [
    LineChart(title="$loss$", x="step", y="", lines=[LINE], log_x=True),
    LineChart(title="nothing", x="step", y="", lines=[]),
    HeatMap(title="norms", x="step", columns=[1, 2], rows={"a": [1.0, None], "b": [0.0, 2.0]}),
    HeatMap(title="shares", x="step", columns=[1, 2], rows={"a": [0.1, 1.0]}, scale="share"),
]


def test_charts_become_one_picture(tmp_path: Path) -> None:
    write_png(CHARTS, tmp_path / "run.png", "a $ run")
    data = (tmp_path / "run.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000


@pytest.mark.parametrize("name", ["nowhere/run.png", "run.docx"])
def test_a_file_that_cannot_be_made_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=name.split(".")[0]):
        write_png(CHARTS[:1], tmp_path / name, "run")
