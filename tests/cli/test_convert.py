import json
from pathlib import Path

import pytest
import torch

from micro_runs import Trained
from seqloom.cli.main import main
from seqloom.core.rooms import load


def test_a_run_is_converted_from_its_newest_step(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["convert", str(trained.folder), str(tmp_path / "new"), "--experts", "stacked"])
    lines = capsys.readouterr().out.splitlines()
    newest = trained.folder / "steps" / "00000003"
    assert lines[0].startswith(f"{tmp_path / 'new'}: ")
    assert f"tensors from {newest}, " in lines[0]
    assert "tokenizer.json" in lines[1]
    model, converted = load(newest).state_dict(), load(tmp_path / "new").state_dict()
    assert all(torch.equal(converted[name], tensor) for name, tensor in model.items())
    main(["generate", str(tmp_path / "new"), "x", "--max-tokens", "2"])


def test_it_is_verified_and_told_as_json(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    main(["convert", str(trained.folder), str(tmp_path / "new"), "--dtype", "bf16", "--verify", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["folder"] == str(tmp_path / "new")
    assert facts["tensors"] == facts["verified"]["tensors"]
    assert facts["stored_as"].keys() == {"bfloat16", "float32"}
    assert "run.yaml" in facts["left_behind"]
    assert facts["verified"]["logits_difference"] < 1e-4
    main(["convert", str(tmp_path / "new"), str(tmp_path / "again"), "--verify"])
    assert "tensors equal the source bit for bit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere", "new"], "nowhere: not a model or run folder; it does not exist"),
        (["RUN", "RUN"], "exists; name a new folder"),
        (["RUN", "new", "--shard-gib", "0"], "--shard-gib: 0.0 is not allowed"),
        (["RUN", "new", "--shard-gib", "nan"], "--shard-gib: nan is not allowed"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str],
    told: str,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["convert", *(str(trained.folder) if each == "RUN" else each for each in arguments)])
    assert stop.value.code == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_adapters_are_sent_to_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path), str(tmp_path / "new")])
    assert "holds adapters; fold them into their model first: seqloom merge" in capsys.readouterr().err
