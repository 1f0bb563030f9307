"""Language models from the command line: build, measure, tune, use."""

import json
from pathlib import Path

import pytest

from seqloom.cli import transcribe
from seqloom.cli.lm import main
from seqloom.core.errors import ConfigError, DataError
from speech_samples import record, untrained

LINES = "Go on!\nTurn left at 2.\ngo left\nturn on\ngo on\n"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts.txt").write_text(LINES)
    return tmp_path / "texts.txt"


def test_build_and_perplexity(tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.arpa.gz"
    main(["build", str(texts), "--order", "2", "--out", str(out), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["sentences"] == 5
    assert facts["words"] == len({"go", "on", "turn", "left", "at", "two"}) + 3
    assert json.loads((tmp_path / "x.arpa.gz.json").read_text())["unit"] == "word"
    (tmp_path / "other.txt").write_text("go right\n")
    main(["perplexity", str(out), str(tmp_path / "other.txt"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["unknown"], found["tokens"]) == (1, 3)
    assert found["perplexity"] > found["without_unknown"] > 1
    main(["build", str(texts), "--unit", "character", "--prune", "0", "1", "--out", str(tmp_path / "c.arpa")])
    assert "characters, from 5 sentences" in capsys.readouterr().out
    assert "<space>" in (tmp_path / "c.arpa").read_text()
    main(["perplexity", str(tmp_path / "c.arpa"), str(texts)])
    assert "0 unknown" in capsys.readouterr().out


def test_tuned_weights_are_used(tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, lm = untrained(tmp_path / "run"), tmp_path / "x.arpa"
    names = [record(tmp_path / "speech" / f"{n}.wav", 1.0 + n / 10, seed=n).name for n in range(4)]
    rows = [f"{name}\tgo on\tspeaker{n % 2}" for n, name in enumerate(names)]
    (tmp_path / "speech" / "index.tsv").write_text("\n".join(["file\ttext\tspeaker", *rows]) + "\n")
    main(["build", str(texts), "--out", str(lm)])
    capsys.readouterr()
    main(["tune", str(run), "--lm", str(lm), "--data", str(tmp_path / "speech"), "--beam", "4", "--json"])
    found = json.loads(capsys.readouterr().out)
    settings = json.loads((tmp_path / "x.arpa.json").read_text())
    assert (settings["alpha"], settings["beta"]) == (found["alpha"], found["beta"])
    assert settings["wer"] == min(one["wer"] for one in found["tried"])
    said = []
    same = ["--alpha", str(found["alpha"]), "--beta", str(found["beta"])]
    for weights in ([], same, ["--alpha", "0", "--beta", "400"]):
        transcribe.main([str(tmp_path / "speech" / names[0]), "--run", str(run), "--lm", str(lm), *weights])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


def test_mistakes_are_named(tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, lm = untrained(tmp_path / "run"), tmp_path / "x.arpa"
    main(["build", str(texts), "--out", str(lm)])
    (tmp_path / "empty.txt").write_text("\n")
    for arguments, said in (
        (["biuld"], "did you mean 'build'"),
        (["build", "--out", "x"], "nothing to count"),
        (["build", str(texts), "--out", "x", "--order", "9"], "order: 9"),
        (["build", str(tmp_path / "empty.txt"), "--out", "x"], "no text to estimate"),
        (["perplexity", str(lm), str(tmp_path / "empty.txt")], "no text to measure"),
        (["perplexity", str(lm), str(tmp_path / "none.txt")], "cannot be read as text"),
        (["tune", str(run), "--lm", str(lm)], "name recordings with --data"),
        (["tune", str(run), "--lm", str(lm), "--limit", "0"], "--limit: 0"),
    ):
        with pytest.raises((ConfigError, DataError), match=said):
            main(arguments)
    (tmp_path / "x.arpa.json").write_text('{"alpha": "much"}')
    with pytest.raises(ConfigError, match='"alpha" and "beta" numbers'):
        main(["tune", str(run), "--lm", str(lm)])
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "perplexity" in capsys.readouterr().out
