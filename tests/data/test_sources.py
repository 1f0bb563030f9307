"""What a user can name as data."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from seqloom.core.errors import ConfigError, DataError
from seqloom.data.documents import Reading
from seqloom.data.sources import open_source


def texts(name: str | Path) -> list[str]:
    return [piece.text for piece in open_source(str(name), "text").pieces(Reading("test", 0))]


def test_a_folder_is_read_recursively_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.py", "a/b.md", "c.jsonl", ".git/x.txt", "a/__pycache__/x.py", "node_modules/x.js"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": name}) if name == "c.jsonl" else name)
    for name in ("picture.png", "config.json", "LICENSE"):
        (tmp_path / name).write_bytes(b"\0")
    source = open_source(str(tmp_path), "text")
    assert texts(tmp_path) == ["b.txt", "c.jsonl", "a/b.md", "a/z.py"]
    assert source.not_read == {".json": 1, ".png": 1, "without suffix": 1}


def test_a_file_of_any_name_is_text(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("free")
    assert texts(tmp_path / "LICENSE") == ["free"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file or folder; also known: python:stdlib"):
        open_source(str(tmp_path / "nowhere"), "text")
    with pytest.raises(DataError, match=r"no file in it is of a known kind; known: \.adoc, .* and source code"):
        open_source(str(tmp_path), "text")
    (tmp_path / "a.txt").touch()
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(DataError, match=f"{path}: empty"):
            open_source(str(path), "text")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_listed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o000)
    with pytest.raises(DataError, match=f"{tmp_path / 'a'}: cannot be read: Permission denied"):
        open_source(str(tmp_path), "text")


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    before = open_source(str(tmp_path), "text")
    assert open_source(str(tmp_path), "text").fingerprint == before.fingerprint
    assert open_source(str(tmp_path), "body").fingerprint != before.fingerprint
    os.utime(tmp_path / "a.txt", (1, 1))
    touched = open_source(str(tmp_path), "text")
    assert touched.fingerprint != before.fingerprint
    assert touched.list_digest == before.list_digest
    (tmp_path / "b.txt").write_text("two")
    assert open_source(str(tmp_path), "text").list_digest != before.list_digest


def save_to_disk(folder: Path, values: list[str]) -> None:
    """What `datasets` writes."""
    arrow = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    (folder / "dataset_info.json").write_text("{}")
    table = arrow.table({"text": values})
    path = folder / "data-00000-of-00001.arrow"
    with arrow.OSFile(str(path), "wb") as file, arrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def test_a_saved_dataset(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "one", ["a", "b"])
    assert texts(tmp_path / "one") == ["a", "b"]
    assert texts(f"hf:{tmp_path / 'one'}") == ["a", "b"]


def test_a_saved_dataset_with_splits_gives_its_training_split(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "test", ["secret"])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match="this saved dataset has no split 'train'"):
        open_source(str(tmp_path), "text")
    save_to_disk(tmp_path / "train", ["a"])
    assert texts(tmp_path) == ["a"]


def test_a_dataset_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_to_disk(tmp_path / "cached", ["a", "b"])
    asked = []

    def load_dataset(name: str, subset: str | None, split: str) -> SimpleNamespace:
        asked.append((name, subset, split))
        if name == "nobody/nothing":
            raise ConnectionError("the hub is far")
        return SimpleNamespace(cache_files=[{"filename": str(tmp_path / "cached" / "data-00000-of-00001.arrow")}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert texts("hf:some/name:en") == ["a", "b"]
    assert texts("hf:some/name") == ["a", "b"]
    assert asked == [("some/name", "en", "train"), ("some/name", None, "train")]
    with pytest.raises(DataError, match="hf:nobody/nothing: the dataset cannot be loaded: the hub is far"):
        open_source("hf:nobody/nothing", "text")


def test_a_dataset_by_name_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"seqloom\[data\]"):
        open_source("hf:some/name", "text")
