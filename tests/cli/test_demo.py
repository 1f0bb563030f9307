from pathlib import Path

import pytest

from seqloom.cli.main import main


@pytest.mark.usefixtures("small_recipe")
def test_the_whole_walk_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["demo", "--out", str(tmp_path / "my demo")])
    text = capsys.readouterr().out
    place = 0
    for part in ("1/3  Train", "step 3/3", "2/3  Measure", "bits per byte", "3/3  Write", "Next:", "seqloom chat '"):
        place = text.index(part, place)
    main(["demo", "--out", str(tmp_path / "my demo")])
    again = capsys.readouterr().out
    assert "step 3/3" not in again  # nothing is trained twice
    assert again[again.index("2/3  Measure") :] == text[text.index("2/3  Measure") :]
