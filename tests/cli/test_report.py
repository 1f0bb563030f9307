import json
from pathlib import Path

import pytest

from run_histories import write_run
from seqloom.cli.report import main
from seqloom.core.errors import ConfigError


def test_the_page_and_its_headline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run")
    main([str(folder)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["steps", "40", "of", "40"]
    assert lines[-1] == str(folder / "report.html")
    assert (folder / "report.html").stat().st_size > 10_000


def test_page_and_picture_elsewhere_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run")
    main([str(folder), "--out", str(tmp_path / "a.html"), "--png", str(tmp_path / "a.png"), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["page"] == str(tmp_path / "a.html")
    assert result["valid"]["loss"] == pytest.approx(2.6)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "report.html").exists()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        main([str(tmp_path)])
