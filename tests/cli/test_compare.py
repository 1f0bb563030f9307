import json
from pathlib import Path

import pytest

from run_histories import write_run
from seqloom.cli.compare import main
from seqloom.core.errors import ConfigError


def test_a_table_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", scale=0.5)
    main([str(a), str(b)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["a", "b"]
    (valid,) = [line for line in lines if line.startswith("validation loss")]
    assert valid.split()[2:] == ["2.6", "1.3"]
    assert lines[lines.index("settings that differ") + 1].split() == ["train.lr", "1.0", "0.5"]
    assert len({line.rfind("  ") for line in lines[:5]}) == 1  # columns are aligned
    main([str(a), str(a)])
    assert "settings: all the same" in capsys.readouterr().out


def test_page_picture_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write_run(tmp_path / name)) for name in "abc"]
    main([*runs, "--out", str(tmp_path / "c.html"), "--png", str(tmp_path / "c.png"), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in result["runs"]] == ["a", "b", "c"]
    assert result["measures"]["steps"] == [40, 40, 40]
    assert "<svg" in (tmp_path / "c.html").read_text()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}: not a run folder"):
        main([str(write_run(tmp_path / "a")), str(tmp_path)])
