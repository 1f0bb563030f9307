"""Corpora that need no download."""

import sysconfig
from pathlib import Path

import pytest

from seqloom.core.errors import DataError
from seqloom.data.corpora import TOPICS, builtin_files
from seqloom.data.documents import Reading
from seqloom.data.sources import open_source


@pytest.fixture
def python_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small Python of our own."""
    root = tmp_path / "python"
    files: dict[str, str | bytes] = {
        "abc.py": "import abc\n",
        "copy_of_abc.py": "import abc\n",
        "empty.py": "",
        "latin.py": b"# \xe9\n",
        "test/test_abc.py": "assert 0\n",
        "lib2to3/tests/a.py": "assert 1\n",
        "site-packages/foreign.py": "import foreign\n",
        "site-packages/tests/foreign.py": "import foreign.tests\n",
        "__pycache__/abc.py": "cached\n",
        TOPICS: "topics = {}\n",
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    places = {"stdlib": root, "purelib": root / "site-packages"}
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(places[name]))
    return root


def test_stdlib_is_the_library_without_tests_and_with_topics(python_tree: Path) -> None:
    reading = Reading("python:stdlib", 5)
    pieces = list(open_source("python:stdlib", "text").pieces(reading))
    names = [Path(piece.origin).relative_to(python_tree).as_posix() for piece in pieces]
    topics = [name.removeprefix(f"{TOPICS}:") for name in names[1:]]
    assert names[0] == "abc.py"
    assert "assert" in topics
    assert "yield" in topics
    assert reading.skipped == {"duplicate": 1, "empty": 1, "not UTF-8 text": 1}


def test_installed_is_every_package(python_tree: Path) -> None:
    names = [file.name for file in builtin_files("python:installed")]
    assert names == ["foreign.py", "tests/foreign.py"]


def test_the_real_library_is_there_and_in_order() -> None:
    names = [file.name for file in builtin_files("python:stdlib")]
    assert len(names) > 400
    assert {"argparse.py", "json/decoder.py", TOPICS} <= set(names)
    assert not [name for name in names if {"test", "tests", "idle_test", "site-packages"} & set(name.split("/"))]
    assert names == [file.name for file in builtin_files("python:stdlib")]


def test_unknown_and_empty_corpora(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="unknown built-in corpus 'python:stdlb'; known: python:stdlib, python:installed"
    ):
        builtin_files("python:stdlb")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="this Python has no sources under"):
        builtin_files("python:stdlib")
