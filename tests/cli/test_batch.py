"""A file of prompts answered into another file, by an engine whose answers the prompts tell."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from cli.scripted_engine import TEMPLATE, ScriptedEngine, write_folder
from rich.console import Console

from seqloom.cli import batch
from seqloom.cli.counter import Counter
from seqloom.cli.engine_options import EngineOptions
from seqloom.cli.main import main
from seqloom.core.errors import DataError
from seqloom.data.tokenizer import open_tokenizer
from seqloom.serve.config import Sampling


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def read(path: Path) -> dict[Any, dict[str, Any]]:
    return {record["id"]: record for record in map(json.loads, path.read_text().splitlines())}


def run(folder: Path, source: Path, target: Path, *arguments: str) -> int:
    """The exit code."""
    try:
        main(["generate", str(folder), "--input", str(source), "--output", str(target), *arguments])
    except SystemExit as stop:
        return int(str(stop.code))
    return 0


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("seqloom.serve.engine.Engine", ScriptedEngine)
    monkeypatch.setattr(ScriptedEngine, "prompts", [], raising=False)
    return write_folder(tmp_path / "model")


def test_every_line_is_answered_with_settings_of_its_own(
    fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(
        tmp_path / "in.jsonl",
        {"id": "long", "prompt": "COUNT{9}"},
        {"prompt": "COUNT{5}", "max_tokens": 2},
        "",
        {"id": "ids", "tokens": open_tokenizer(fake).encode("SAY{naïve}"), "logprobs": 1},
        {"id": 7, "prompt": "anything"},
    )
    assert run(fake, source, tmp_path / "out.jsonl", "--max-tokens", "20", "--json") == 0
    found = read(tmp_path / "out.jsonl")
    assert list(found) == [2, "ids", "long", 7]  # as they finish, two at a time
    assert (found["long"]["text"], found["long"]["finish_reason"]) == ("1 2 3 4 5 6 7 8 9", "eos")
    assert (found[2]["text"], found[2]["finish_reason"]) == ("1 2", "length")
    assert found["ids"]["text"] == "naïve"
    assert found["ids"]["logprobs"][0] == [-0.5, [[found["ids"]["token_ids"][0], -0.5]]]
    assert len(found[7]["token_ids"]) == 20
    output = capsys.readouterr()
    assert json.loads(output.out)["answered"] == 4
    assert "answered 4 of 4" in output.err


def test_lines_that_cannot_be_answered_say_why_and_the_others_go_on(
    fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        "{": "not JSON",
        '"text"': "expected an object, found str",
        '{"id": true, "prompt": "a"}': "id: expected a text or a whole number",
        '{"prompt": "\\ud800"}': "not JSON",
        '{"prompt": "a", "tokens": [3]}': "got prompt, tokens",
        "{}": "got none",
        '{"prompt": 3}': "prompt: expected a text, got 3",
        '{"tokens": ["a"]}': "tokens: expected a list of token ids",
        '{"tokens": [true]}': "tokens: expected a list of token ids",
        '{"prompt": "a", "temperatur": 0}': "did you mean 'temperature'",
        '{"prompt": "a", "top_p": 2}': "top_p",
        '{"messages": [{"role": "user", "content": "a"}]}': "this model has none",
    }
    source = write(tmp_path / "in.jsonl", *wrong, {"id": "good", "prompt": "SAY{yes}"})
    assert run(fake, source, tmp_path / "out.jsonl") == 2
    assert "12 of 13 lines could not be answered" in " ".join(capsys.readouterr().err.split())
    found = read(tmp_path / "out.jsonl")
    assert found.pop("good")["text"] == "yes"
    for number, words in enumerate(wrong.values(), start=1):
        assert words in found[number]["error"], found[number]
        assert found[number]["line"] == number


def test_conversations_are_answered_as_the_server_does(fake: Path, tmp_path: Path) -> None:
    write_folder(fake, TEMPLATE)
    said = [{"role": "user", "content": "SAY{because </think> yes}"}]
    source = write(tmp_path / "in.jsonl", {"messages": said}, {"messages": said, "thinking_tokens": 0})
    assert run(fake, source, tmp_path / "out.jsonl") == 0
    found = read(tmp_path / "out.jsonl")
    assert ScriptedEngine.prompts[0].endswith("<|im_start|>assistant\n<think>\n")
    assert ScriptedEngine.prompts[1].endswith("<|im_start|>assistant\n")
    assert (found[1]["reasoning"], found[1]["text"].strip()) == ("because", "yes")


def test_an_interrupted_run_goes_on_with_what_is_missing(fake: Path, tmp_path: Path) -> None:
    lines = [{"id": f"n{count}", "prompt": f"COUNT{{{count}}}"} for count in range(1, 8)]
    source, target, whole = write(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    assert run(fake, source, whole) == 0
    engine, found = ScriptedEngine(fake), []
    answering = EngineOptions().answering(fake)
    for record in batch.answers(engine, batch.read_lines(source, Sampling(), answering), Sampling()):
        found.append(json.dumps(record) + "\n")
        if len(found) == 3:
            break
    failure = json.dumps({"id": "n7", "line": 7, "error": "it was too late"}) + "\n"
    for cut in (0, 1, 25, len(found[2]) - 1):
        target.write_text(found[0] + failure + found[1] + found[2][:cut])
        assert batch.read_finished(target, batch.read_digests(source, Sampling(), answering)) == {"n1", "n2"}
        assert target.read_text() == found[0] + found[1]
        target.write_text(found[0] + failure + found[1] + found[2][:cut])
        assert run(fake, source, target) == 0
        assert target.read_text().startswith(found[0] + found[1])
        assert read(target) == read(whole)
        assert len(target.read_text().splitlines()) == 7
    before = target.read_text()
    assert run(fake, source, target) == 0  # nothing is left
    assert run(fake, source, target, "--max-tokens", "3") == 2  # answers to other questions do not mix with these
    assert run(fake, source, target, "--weights", "int8") == 2
    (fake / "config.json").write_text("{ }")  # nor do answers of another model
    assert run(fake, source, target) == 2
    (fake / "config.json").write_text("{}")
    assert run(fake, write(source, {**lines[0], "prompt": "COUNT{2}"}, *lines[1:]), target) == 2
    assert target.read_text() == before
    assert run(fake, write(source, {"id": "new", "prompt": "SAY{new}"}, *reversed(lines)), target) == 0
    assert target.read_text().startswith(before)
    assert read(target)["new"]["text"] == "new"


def test_files_that_do_not_fit_are_refused_and_left_alone(fake: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", {"id": "a", "prompt": "x"})
    for text, words in (
        ("notes of mine\nmore\n", "line 1 is no answer of this command"),
        ('{"id": "b", "text": ""}\n', "answers 'b', which is not in the input"),
    ):
        (tmp_path / "out.jsonl").write_text(text)
        with pytest.raises(DataError, match=words):
            batch.read_finished(tmp_path / "out.jsonl", batch.read_digests(source, Sampling(), ""))
        assert (tmp_path / "out.jsonl").read_text() == text
    with pytest.raises(DataError, match="cannot be written"):
        batch.read_finished(tmp_path / "absent" / "out.jsonl", {})
    twice = write(tmp_path / "twice.jsonl", {"prompt": "x"}, {"id": 1, "prompt": "y"})
    for path, words in (
        (twice, "line 2 has the id 1 again"),
        (write(tmp_path / "empty.jsonl", ""), "holds no prompts"),
        (tmp_path / "absent.jsonl", "cannot be read"),
        (Path("/dev/null"), "is no file"),  # as a pipe, whose end comes too soon the second time
    ):
        with pytest.raises(DataError, match=words):
            batch.read_digests(path, Sampling(), "")


def test_input_and_output_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--input", "a"], ["--output", "a"], ["text", "--input", "a", "--output", "b"]):
        with pytest.raises(SystemExit) as stop:
            main(["generate", str(tmp_path), *arguments])
        assert stop.value.code == 2
        assert "--input and --output go together" in " ".join(capsys.readouterr().err.split())


def test_progress_is_a_live_line_on_a_terminal_only() -> None:
    for terminal in (True, False):
        shown = io.StringIO()
        with Counter(Console(file=shown, force_terminal=terminal, width=100), "answered", 5, 2) as counter:
            for _ in range(3):
                counter.advance("9 tokens/s")
        assert "2 of 5 were answered before" in shown.getvalue()
        assert "9 tokens/s" in shown.getvalue()
        assert ("\x1b" in shown.getvalue()) == terminal
