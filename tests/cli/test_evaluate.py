import importlib.util
import json
from pathlib import Path

import pytest

from micro_runs import Trained
from seqloom.cli.main import main
from seqloom.core.logs import read_metrics


def test_equals_the_last_evaluation_of_the_training(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", str(trained.folder), "--limit", "8", "--json"])  # the training measured 8 rows
    found = json.loads(capsys.readouterr().out)
    logged = read_metrics(trained.folder / "metrics.jsonl")[-1]
    assert found["bits_per_byte"] == pytest.approx(logged["bits_per_byte"], rel=1e-5)
    assert found["perplexity"] == pytest.approx(logged["perplexity"], rel=1e-5)


def test_text_of_ones_own(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.txt").write_text("def compute_1(alpha):\n    return alpha\n" * 20)
    main(["evaluate", str(trained.folder), "--data", str(tmp_path / "own.txt"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == pytest.approx((tmp_path / "own.txt").stat().st_size, abs=2)
    main(["evaluate", str(trained.folder), "--data", str(tmp_path / "own.txt")])
    lines = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert float(lines["bits per byte"]) == pytest.approx(found["bits_per_byte"], rel=1e-4)


def test_mistakes_are_named(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["nowhere"], "nowhere: not a model or run folder"),
        ([str(trained.folder), "--data", "nowhere.txt"], "nowhere.txt: no such file or folder"),
        ([str(trained.folder), "--limit", "0"], "--limit: 0 is not allowed"),
        ([str(trained.folder), "--errors", "x.txt"], "--errors: is for speech"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", *arguments])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_tasks_without_lm_eval_say_how_to_install_it(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(trained.folder), "--tasks", "hellaswag"])
    assert stop.value.code == 2
    assert "pip install 'seqloom[eval]'" in capsys.readouterr().err
