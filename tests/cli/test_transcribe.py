"""Transcription from the command line, by a recogniser that writes letters at random."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from seqloom.cli.transcribe import main
from seqloom.core.errors import ConfigError, DataError
from seqloom.systems.deep_speech2 import segment, transcribe
from speech_samples import record, untrained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("runs") / "model")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    for number, seconds in enumerate((2.0, 0.6, 1.3)):
        record(folder / f"part{number % 2}" / f"{number}.wav", seconds, seed=number)
    return folder


def test_one_file_and_standard_input_say_the_same(
    run: Path, sounds: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = sounds / "part0" / "0.wav"
    main([str(file), "--run", str(run)])
    text = capsys.readouterr().out
    assert len(text) > 5
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(file.read_bytes())))
    main(["-", "--run", str(run), "--format", "json", "--best", "3"])
    data = json.loads(capsys.readouterr().out)
    assert data["text"] + "\n" == text
    assert data["seconds"] == 2.0
    assert len(data["segments"][0]["alternatives"]) == 2
    assert data["segments"][0]["words"][-1]["end"] <= 2.0


def test_a_folder_with_bad_files_goes_on(
    run: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "good.wav", 1.0)
    record(tmp_path / "silent.wav", 1.0, quiet=(0, 1))
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    (tmp_path / "notes.txt").write_text("no sound")
    out = tmp_path / "out"
    arguments = [str(sounds), str(tmp_path / "good.wav"), str(tmp_path / "bad.wav"), str(tmp_path / "silent.wav")]
    with pytest.raises(DataError, match="1 of 6 recordings could not be transcribed"):
        main([*arguments, "--run", str(run), "--out", str(out), "--format", "srt"])
    assert f"{tmp_path / 'bad.wav'}: " in capsys.readouterr().err
    names = {str(path.relative_to(out)) for path in out.rglob("*.srt")}
    assert names == {"good.srt", "silent.srt", "part0/0.srt", "part0/2.srt", "part1/1.srt"}
    assert (out / "good.srt").read_text().startswith("1\n00:00:0")
    assert (out / "silent.srt").read_text() == ""
    with pytest.raises(DataError, match="1 of 2"):
        main([*arguments[1:3], "--run", str(run)])
    line, *rest = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{tmp_path / 'good.wav'}\t")
    assert not rest


def test_long_recordings_are_heard_in_pieces(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcribe, "WAITING_PIECES", 3)
    monkeypatch.setattr(transcribe, "pieces", lambda blocks, unit: segment.pieces(blocks, unit, longest_seconds=1.0))
    main([str(record(tmp_path / "long.wav", 6.3, quiet=(2.0, 2.6))), "--run", str(run), "--format", "json"])
    segments = json.loads(capsys.readouterr().out)["segments"]
    assert len(segments) >= 6
    assert [each["start"] for each in segments] == sorted(each["start"] for each in segments)
    assert segments[-1]["end"] == 6.3
    for each in segments:
        assert all(each["start"] <= word["start"] <= word["end"] <= each["end"] + 0.02 for word in each["words"])


def test_neighbours_in_a_batch_change_nothing(run: Path, sounds: Path) -> None:
    files = sorted(sounds.rglob("*.wav"))
    together = list(transcribe.transcribe(run, files))
    alone = [one for file in files for one in transcribe.transcribe(run, [file])]
    assert [one.text for one in together] == [one.text for one in alone]  # type: ignore[union-attr]
    assert [one.name for one in together] == [str(file) for file in files]


def test_hotwords_and_lexicons_reach_the_decoder(
    run: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.txt").write_text("GO  G OW\nGO(2)  G AH\nON\n")
    arguments = [str(sounds / "part0" / "0.wav"), "--run", str(run), "--lexicon", str(tmp_path / "words.txt")]
    main(arguments)
    assert set(capsys.readouterr().out.split()) <= {"go", "on"}
    main([*arguments, "--hotword", "zz=400"])
    assert "zz" in capsys.readouterr().out.split()


def test_mistakes_are_named(run: Path, sounds: Path, tmp_path: Path) -> None:
    file, common = str(sounds / "part0" / "0.wav"), ["--run", str(run)]
    record(tmp_path / "a" / "0.wav", 0.5)
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        ([file, *common, "--format", "doc"], "--format: 'doc' is not known; known: text, json"),
        ([file, *common, "--beam", "0"], "beam"),
        ([file, *common, "--best", "0"], "--best: 0"),
        ([file, *common, "--alpha", "1"], r"--alpha: weighs a language model; name one \(--lm\)"),
        ([file, *common, "--hotword", "go=x"], "--hotword go=x: 'x' is not a number"),
        ([file, *common, "--hotword", "gö"], "the model does not write 'ö'"),
        ([str(sounds), *common, "--format", "srt"], "3 recordings are 3 files"),
        ([file, str(tmp_path / "a" / "0.wav"), *common, "--out", "x"], "several recordings would be written"),
        ([str(tmp_path / "empty"), *common], "no recordings in this folder"),
        ([file, *common, "--lm", str(tmp_path / "x.arpa")], "cannot be read as an ARPA"),
        ([file, *common, "--lexicon", str(tmp_path / "x.txt")], "cannot be read"),
    ):
        with pytest.raises((ConfigError, DataError), match=said):
            main(arguments)
