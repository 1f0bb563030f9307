import json
import shutil
from pathlib import Path

import pytest

from micro_runs import Trained
from seqloom.cli.main import main
from seqloom.cli.show import readable
from seqloom.core.rooms import load


def test_recipe_shows_cost_formats_kernels_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    main(["show", "hybrid_lm/tiny"])
    text = capsys.readouterr().out
    for part in ("parameters", "active", "flops per token", "kv bytes per token", "ssd", "pattern: M-M*EME"):
        assert part in text


def test_json_counts_the_numbers_of_the_model(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    main(["show", str(trained.folder), "--json"])
    found = json.loads(capsys.readouterr().out)
    counted = sum(tensor.numel() for tensor in load(trained.folder).state_dict().values())
    assert found["cost"]["parameters"] + found["cost"]["mtp_parameters"] == counted
    assert found["settings"]["train"]["steps"] == 3
    assert set(found["number_formats"].values()) <= {"fp32", "bf16"}


def test_public_folder_shows_cost_and_shapes(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trained.folder / "config.json", tmp_path)
    main(["show", str(tmp_path), "--json"])
    found = json.loads(capsys.readouterr().out)
    main(["show", str(trained.folder), "--json"])
    of_run = json.loads(capsys.readouterr().out)
    assert found["cost"].items() <= of_run["cost"].items()
    assert found["settings"]["width"] == 32


def test_what_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["show", "hybrid_lm/tin"])
    assert stop.value.code == 2
    assert "did you mean 'hybrid_lm/tiny'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("parameters", 1234567, "1,234,567"), ("state_bytes", 2048, "2.05 kB (2,048)"), ("format", "bf16", "bf16")],
)
def test_numbers_are_readable(name: str, value: object, text: str) -> None:
    assert readable(name, value) == text
