"""Alignment from the command line."""

import json
import wave
from pathlib import Path

import pytest

from seqloom.cli.align import main
from seqloom.core.errors import ConfigError, DataError
from speech_samples import record, untrained


def test_words_get_times_and_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, audio = untrained(tmp_path / "run"), record(tmp_path / "talk.wav", 3.0)
    text = tmp_path / "talk.txt"
    text.write_text("Go on,\nthen stop; 2 times!")
    main([str(audio), str(text), "--run", str(run), "--clips", str(tmp_path / "clips")])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[4] for row in rows] == ["go", "on", "then", "stop", "two", "times"]
    starts = [float(row[2]) for row in rows]
    assert starts == sorted(starts)
    assert starts[-1] + float(rows[-1][3]) <= 3.0
    head, *clips = (tmp_path / "clips" / "index.tsv").read_text().splitlines()
    assert head.split("\t")[:2] == ["file", "text"]
    assert " ".join(clip.split("\t")[1] for clip in clips) == "go on then stop two times"
    for clip in clips:
        name, _, seconds, _ = clip.split("\t")
        with wave.open(str(tmp_path / "clips" / name)) as file:
            assert file.getnframes() / 16000 == pytest.approx(float(seconds), abs=1e-3)
    main([str(audio), str(text), "--run", str(run), "--format", "json"])
    assert json.loads(capsys.readouterr().out)["text"] == "go on then stop two times"
    for arguments, said in (
        ([str(audio), str(text), "--clips", str(tmp_path / "clips")], "exists already"),
        ([str(audio), str(tmp_path / "none.txt")], "none.txt: cannot be read as text"),
        ([str(tmp_path / "none.wav"), str(text)], "none.wav: cannot be read"),
    ):
        with pytest.raises((ConfigError, DataError), match=said):
            main([*arguments, "--run", str(run)])
    text.write_text("!?")
    with pytest.raises(DataError, match="has no words"):
        main([str(audio), str(text), "--run", str(run)])
