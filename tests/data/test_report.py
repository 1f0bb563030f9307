"""What a user sees before step 1."""

import json
import platform
from pathlib import Path

import pytest

from seqloom.data.config import DataConfig, SourceConfig
from seqloom.data.prepare import prepare
from seqloom.data.report import report_lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "texts"
    path.mkdir()
    lines = [{"text": "short"}, {"text": "tiny"}, {"body": 1}, {"text": ""}]
    (path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (path / "b.txt").write_text("a longer text with an \x1b[31mescape\n")
    (path / "c.csv").write_text("1,2")
    return path


def report(path: str | Path, sequence_length: int = 64) -> dict:  # type: ignore[type-arg]
    config = DataConfig(sources=(SourceConfig(path=str(path)),))
    made = prepare(config, vocab_size=300, sequence_length=sequence_length, rows_total=10, seed=0)
    assert json.loads(json.dumps(made.report)) == made.report
    return made.report


def test_it_counts(folder: Path) -> None:
    (source,) = report(folder)["sources"]
    assert source["documents"] == 3
    assert source["bytes"] == len("short") + len("tiny") + len("a longer text with an \x1b[31mescape\n")
    assert source["bytes_per_token"] == source["bytes"] / source["tokens"]
    assert source["valid"]["documents"] == 1
    assert source["skipped"] == {"empty": 1, "no field 'text'": 1}
    assert source["files_not_read"] == {".csv": 1}
    assert source["longest"]["origin"] == str(folder / "b.txt")
    assert (source["rows_drawn"], source["share"], source["repeats"]) == (10, 1.0, 10.0)
    assert "python" not in source


def test_the_example_shows_documents_and_missing_targets(folder: Path) -> None:
    example = report(folder)["example"]
    assert "".join(span["text"] for span in example).count("<s>") == 2
    assert [span["document"] for span in example] == [0, 0, 1, 1]
    assert [span["target"] for span in example] == [True, False, True, False]
    assert [span["text"] for span in example if not span["target"]] == ["</s>", "</s>"]


def test_lines_are_plain_and_complete(folder: Path) -> None:
    lines = report_lines(report(folder))
    text = "\n".join(lines)
    for expected in (
        "3 documents, 43 bytes",
        "1 documents",
        "1 empty, 1 no field 'text'",
        "a.jsonl:3: no field 'text'; keys here: body",
        "not read: 1 .csv",
        "10 of 1 rows (10.00 times), 100.0% of training",
        "warning: beyond 4 times, text teaches much less than new text would",
        "       0 | ",
        "       1 | ",
        "«</s>»",
    ):
        assert expected in text
    assert text.replace("\n", "").isprintable()
    assert max(map(len, lines)) < 200


def test_text_shown_a_few_times_is_no_warning(folder: Path) -> None:
    found = report(folder)
    for source in found["sources"]:
        source["repeats"] = 4.0
    assert "warning" not in "\n".join(report_lines(found))


def test_a_built_in_corpus_names_the_python_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("import this\n" * 9)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    (source,) = report("python:stdlib")["sources"]
    assert source["python"] == platform.python_version()
    assert len(source["list_sha256"]) == 64
