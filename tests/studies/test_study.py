import importlib
import json
import re

import pytest

from seqloom.core.charts import Line, LineChart
from seqloom.studies.catalog import STUDIES
from seqloom.studies.study import JSON, PAGE, Claim, Findings, Table

FINDINGS = Findings(
    title="Do <b>norms</b> help?",
    source="A paper",
    setting={"model": "small", "text": "some"},
    tables=[Table(title="Losses", headings=("method", "paper", "here"), rows=[("base", "1.0", "1.25")], note="Rough.")],
    claims=[
        Claim(name="one", says="It helps.", paper="much", here="a little", holds=True),
        Claim(name="two", says="It costs nothing.", paper="0 %", here="12 %", holds=False),
        Claim(name="three", says="It scales.", paper="yes", here="needs a GPU", holds=None),
    ],
    remarks=["One seed."],
    charts=[LineChart(title="Loss", x="step", y="nats", lines=[Line(name="base", points=[(1, 2.0), (2, 1.0)])])],
    data={"runs": [1, 2]},
)


@pytest.mark.parametrize("name", STUDIES)
def test_every_listed_study_is_there(name):
    room = importlib.import_module(f"seqloom.studies.{name}")
    assert room.Options() == room.Options()
    assert callable(room.study)


def test_text_has_every_figure_and_every_verdict():
    lines = FINDINGS.as_text().splitlines()
    assert "method  paper  here" in lines
    assert "base    1.0    1.25" in lines
    assert [line for line in lines if re.fullmatch("(one|two|three): .*", line)] == [
        "one: reproduced",
        "two: not reproduced",
        "three: not measured",
    ]
    assert "  here   needs a GPU" in lines
    assert lines[-1] == "One seed."


def test_files_hold_the_same(tmp_path):
    FINDINGS.write(tmp_path)
    stored = json.loads((tmp_path / JSON).read_text(encoding="utf-8"))
    assert [claim["verdict"] for claim in stored["claims"]] == ["reproduced", "not reproduced", "not measured"]
    assert stored["data"] == {"runs": [1, 2]}
    html = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "<b>norms</b>" not in html
    assert "Do &lt;b&gt;norms&lt;/b&gt; help?" in html
    assert all(text in html for text in ("not reproduced", "needs a GPU", "1.25", "Rough.", "<svg", "One seed."))
