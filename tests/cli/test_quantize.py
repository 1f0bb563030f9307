import json
from pathlib import Path

import pytest

import seqloom
from micro_runs import Trained
from seqloom.cli.main import main
from seqloom.core.errors import CheckpointError


def test_a_run_is_quantized_and_told_what_it_costs(
    trained: Trained, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = trained.folder.with_name(f"{trained.folder.name}-fp8")  # where it is written if nothing else is said
    main(["quantize", str(trained.folder), "--recipe", "fp8", "--rows", "4"])
    shown = capsys.readouterr().out
    assert "backbone.layers.0.mixer.in_proj" in shown
    assert "with quantized weights and activations" in shown
    report = json.loads((out / "quantization.json").read_text())
    assert report["bits_per_weight"] == 8
    assert 0 < abs(report["loss"]["weights"] - report["loss"]["before"]) < 0.01 * report["loss"]["before"]
    assert all(0 < layer["weight_error"] < 0.03 and 0 < layer["output_error"] < 0.06 for layer in report["layers"])
    assert report["bytes_after"] < 0.5 * report["bytes_before"]
    main(["evaluate", str(out), "--data", str(texts), "--limit", "4", "--json"])
    main(["generate", str(out), "x", "--max-tokens", "2"])
    with pytest.raises(SystemExit):
        main(["quantize", str(out), "--out", str(tmp_path / "again"), "--calibrate", str(texts)])
    assert "is quantized already" in capsys.readouterr().err


def test_formats_are_chosen_under_a_budget(
    trained: Trained, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    settings = ["--budget-bits", "6", "--weights", "four_over_six", "--rows", "4", "--calibrate", str(texts), "--json"]
    main(["quantize", str(trained.folder), "--out", str(out), *settings, "--keep", "*.layers.0.*"])
    report = json.loads(capsys.readouterr().out)
    assert 5.5 < report["bits_per_weight"] <= 6
    assert len({layer["format"] for layer in report["layers"]}) > 1
    assert not any(layer["name"].startswith("backbone.layers.0.") for layer in report["layers"])
    assert seqloom.load(out).vocab_size == 320


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["--budget-bits", "3"], "budget_bits: 3 bits per weight cannot be had"),
        (["--budget-bits", "16", "--rows", "1"], "budget_bits: with 16 bits per weight every layer can stay in BF16"),
        (["--keep", "*.nothing"], "no linear layer is matched by '*.nothing'"),
        (["--layout", "compressed-tensors"], "experts cannot be quantized"),
        (["--rows", "0"], "--rows: 0 is not allowed"),
        (["--recipe", "mixed", "--budget-bits", "6"], "'mixed' has its formats fixed"),
    ],
)
def test_what_cannot_be_done_is_said(
    settings: list[str], told: str, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["quantize", str(trained.folder), "--out", str(tmp_path / "new"), *settings])
    assert stop.value.code == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_it_is_a_verb_of_the_package_too(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="exists; name a new folder"):
        seqloom.quantize(trained.folder, tmp_path)
