import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from seqloom.cli.study import main
from seqloom.core.errors import ConfigError
from seqloom.data.config import SourceConfig
from seqloom.studies import stability
from seqloom.studies.catalog import STUDIES
from seqloom.studies.study import JSON, PAGE


@pytest.fixture
def short(texts: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a study of two short runs on small texts."""
    scale = stability.SCALES["laptop"]
    data = replace(scale.run.task.data, sources=(SourceConfig(path=str(texts)),), valid_fraction=0.2)
    run = replace(scale.run, task=replace(scale.run.task, data=data, evaluate_rows=4))
    monkeypatch.setitem(stability.SCALES, "laptop", replace(scale, run=run))
    return ["stability", "--methods", "base", "qk_norm", "--rates", "0.01", "--steps", "8"]


def test_without_a_name_the_studies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([])
    text = capsys.readouterr().out
    assert all(f"  {name} " in text and what in text for name, what in STUDIES.items())


def test_help_does_not_wait_for_torch() -> None:
    program = (
        "import sys; from seqloom.cli.study import main\n"
        "try: main(['stability', '--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert "--methods" in result.stdout
    assert "--out" in result.stdout


def test_an_unknown_study_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown study 'stabilty'; did you mean 'stability'"):
        main(["stabilty"])


def test_a_value_out_of_bounds_is_refused(short: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seeds"):
        main([*short, "--seeds", "0", "--out", str(tmp_path)])


def test_a_study_prints_and_leaves_its_findings(
    short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*short, "--out", str(tmp_path / "found")])
    text = capsys.readouterr().out
    assert "2/2  qk_norm at 0.01, seed 0: loss" in text
    assert "rates: not measured" in text
    assert text.rstrip().endswith(str(tmp_path / "found" / PAGE))
    main([*short, "--out", str(tmp_path / "found"), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("folder") == str(tmp_path / "found")
    assert printed == json.loads((tmp_path / "found" / JSON).read_text(encoding="utf-8"))
    assert [run["method"] for run in printed["data"]["runs"]] == ["base", "qk_norm"]
