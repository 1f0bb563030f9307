import json
from pathlib import Path

import pytest
import torch

from micro_runs import Trained
from seqloom.cli.main import main
from seqloom.core.rooms import load


def test_merged_model_lies_between_its_checkpoints(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        ["merge", str(trained.folder), "--last", "2", "--shape", "linear", "--out", str(tmp_path / "merged"), "--json"]
    )
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "merged"), "steps": [2, 3]}
    merged, *parts = (
        load(folder).state_dict()
        for folder in (tmp_path / "merged", *(trained.folder / "steps" / f"{step:08}" for step in (2, 3)))
    )
    for name, tensor in merged.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (parts[0][name] + parts[1][name]) / 2)
    main(["generate", str(tmp_path / "merged"), "x", "--max-tokens", "2"])


def test_options_of_the_other_kind_are_refused(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    for arguments, said in (
        ([str(trained.folder), "--base", str(tmp_path)], "--base: is the model under adapters"),
        ([str(tmp_path / "adapter"), "--last", "2"], "--last: averages checkpoints"),
        ([str(tmp_path / "adapter"), "--shape", "linear"], "--shape: averages checkpoints"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["merge", *arguments, "--out", str(tmp_path / "merged")])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


def test_more_than_were_kept_is_refused(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["merge", str(trained.folder), "--last", "5", "--out", str(tmp_path / "merged")])
    assert stop.value.code == 2
    assert "5 checkpoints cannot be merged" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
