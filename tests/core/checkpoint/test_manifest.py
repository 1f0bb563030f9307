"""Any change to any byte of any listed file is found, and laid at the door of that file."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest

from seqloom.core.checkpoint.manifest import verify, write_manifest

DAMAGED = "manifest.json: damaged (if it is not of this program, remove it to load the folder unchecked)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "step"
    (folder / "inner").mkdir(parents=True)
    (folder / "model.bin").write_bytes(bytes(range(256)) * 9)
    (folder / "état.json").write_text('{"step": 1}')
    (folder / "empty").touch()
    (folder / "inner" / "adapter.bin").write_bytes(b"adapter")
    write_manifest(folder)
    return folder


def test_a_folder_as_written_has_no_problems(folder: Path) -> None:
    assert verify(folder) == []
    listed = json.loads((folder / "manifest.json").read_bytes())
    assert listed["format"] == 1
    assert sorted(listed["files"]) == ["empty", "inner/adapter.bin", "model.bin", "état.json"]
    expected = hashlib.sha256((folder / "model.bin").read_bytes()).hexdigest()
    assert listed["files"]["model.bin"] == {"bytes": 2304, "sha256": expected}


def test_more_files_do_not_matter(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    assert verify(folder) == []


def test_every_file_is_named_when_it_is_missing_cut_or_longer(folder: Path) -> None:
    for name in ("model.bin", "état.json", "empty", "inner/adapter.bin"):
        path, whole = folder / name, (folder / name).read_bytes()
        path.unlink()
        assert verify(folder) == [f"{name}: missing"]
        path.write_bytes(whole + b"x")
        assert verify(folder) == [f"{name}: {len(whole) + 1} bytes long, {len(whole)} were written"]
        path.write_bytes(whole[:-1])
        assert verify(folder) == ([f"{name}: {len(whole) - 1} bytes long, {len(whole)} were written"] if whole else [])
        path.write_bytes(whole)
    assert verify(folder) == []


def test_every_changed_byte_is_named(folder: Path) -> None:
    draw = random.Random(0)
    for name, problem in (("model.bin", "digest differs"), ("état.json", "digest differs"), ("manifest.json", "")):
        path, whole = folder / name, (folder / name).read_bytes()
        for place in draw.sample(range(len(whole)), min(len(whole), 100)):
            damaged = bytearray(whole)
            damaged[place] ^= draw.choice([1, 2, 4, 8, 16, 32, 64, 128, draw.randrange(1, 256)])
            path.write_bytes(damaged)
            found = verify(folder)
            assert len(found) == 1, (name, place)
            assert found[0].startswith(f"{name}: {problem}")
        path.write_bytes(whole)


def test_all_problems_are_listed(folder: Path) -> None:
    (folder / "model.bin").unlink()
    (folder / "empty").write_text("no more")
    assert len(verify(folder)) == 2


def test_swapped_files_are_both_named(folder: Path) -> None:
    (folder / "b.bin").write_bytes(b"A" * 10)
    (folder / "a.bin").write_bytes(b"B" * 10)
    write_manifest(folder)
    shutil.move(folder / "a.bin", folder / "c.bin")
    shutil.move(folder / "b.bin", folder / "a.bin")
    shutil.move(folder / "c.bin", folder / "b.bin")
    assert verify(folder) == ["a.bin: digest differs", "b.bin: digest differs"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "manifest.json: missing"),
        (b"", DAMAGED),
        (b"[]", DAMAGED),
        (b"{}", DAMAGED),
        (b"\xff", DAMAGED),
        (b'{"format": 2, "files": {}}', "manifest.json: format 2, this version reads 1"),
    ],
)
def test_without_its_list_a_folder_is_damaged(content: bytes | None, expected: str, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    if content is not None:
        (folder / "manifest.json").write_bytes(content)
    assert verify(folder) == [expected]


def test_what_is_no_file_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "model.bin").unlink()
    (folder / "model.bin").mkdir()
    assert verify(folder) == ["model.bin: a folder, not a regular file"]
    assert verify(tmp_path / "nowhere") == ["the folder is missing"]
