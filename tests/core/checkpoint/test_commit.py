"""Old or new, never half: whatever fails, and wherever a writer dies."""

import errno
import itertools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from seqloom.core.checkpoint import commit

FailingDisk = Callable[[int | None, int, bool], AbstractContextManager[list[tuple[Any, ...]]]]


def _fill(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "a").write_text(text)
        (folder / "inner").mkdir()
        (folder / "inner" / "b").write_text(text)

    return fill


def _content(folder: Path) -> str:
    texts = {(folder / "a").read_text(), (folder / "inner" / "b").read_text()}
    assert len(texts) == 1
    return texts.pop()


def test_a_folder_appears_whole_and_alone(tmp_path: Path) -> None:
    commit.commit_folder(tmp_path / "x", _fill("1"))
    commit.commit_folder(tmp_path / "x", _fill("2"))
    assert _content(tmp_path / "x") == "2"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_the_writer_raises_passes_through_and_leaves_no_trace(error: type[BaseException], tmp_path: Path) -> None:
    commit.commit_folder(tmp_path / "x", _fill("1"))

    def break_off(folder: Path) -> None:
        (folder / "a").write_text("2")
        raise error

    with pytest.raises(error):
        commit.commit_folder(tmp_path / "x", break_off)
    assert _content(tmp_path / "x") == "1"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("lasting", [False, True])
def test_a_replaced_folder_is_old_or_new_whatever_fails(
    lasting: bool, tmp_path: Path, failing_disk: FailingDisk
) -> None:
    number, finished = 0, False
    while not finished:
        folder = tmp_path / f"{number}"
        folder.mkdir()
        commit.commit_folder(folder / "x", _fill("old"))
        failed = False
        with failing_disk(number, errno.EIO, lasting) as called:
            try:
                commit.commit_folder(folder / "x", _fill("new"))
            except OSError:
                failed = True
        if lasting:  # else it is whole at once, without a next writer's help
            commit.sweep(folder)
        assert (folder / "x").exists()
        commit.sweep(folder)
        assert os.listdir(folder) == ["x"]
        assert _content(folder / "x") in ({"old", "new"} if failed else {"new"})
        finished = len(called) <= number
        number += 1
    assert number > 15


@pytest.mark.parametrize("lasting", [False, True])
def test_a_small_file_is_old_or_new_whatever_fails(lasting: bool, tmp_path: Path, failing_disk: FailingDisk) -> None:
    for number in range(20):
        path = tmp_path / f"{number}"
        commit.write_file(path, b"old")
        failed = False
        with failing_disk(number, errno.ENOSPC, lasting) as called:
            try:
                commit.write_file(path, b"new")
            except OSError:
                failed = True
        assert path.read_bytes() in ({b"old", b"new"} if failed else {b"new"})
        assert failed == (number < len(called))


def test_a_small_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, failing_disk: FailingDisk) -> None:
    with failing_disk(None, 0, False) as called:
        commit.write_file(tmp_path / "x", b"1")
    assert [effect[0] for effect in called] == ["open", "write", "open", "fsync", "replace", "open", "fsync"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    commit.write_file(tmp_path / "x", b"0123456789")
    commit.append(tmp_path / "x", b"abcdefg")
    assert (tmp_path / "x").read_bytes() == b"0123456789abcdefg"


def test_a_folder_that_stepped_aside_for_nobody_is_put_back(tmp_path: Path) -> None:
    commit.commit_folder(tmp_path / "x", _fill("old"))
    os.replace(tmp_path / "x", tmp_path / ".x.seqloom-old")  # a writer died here
    (tmp_path / ".x.seqloom-tmp").mkdir()
    (tmp_path / ".mine.tmp").touch()
    commit.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".mine.tmp", "x"]
    assert _content(tmp_path / "x") == "old"


def test_a_link_moves_in_one_step(tmp_path: Path, failing_disk: FailingDisk) -> None:
    commit.set_link(tmp_path / "latest", "a")
    for number in range(10):
        with failing_disk(number, errno.EIO, True) as called:
            try:
                commit.set_link(tmp_path / "latest", "b")
            except OSError:
                assert os.readlink(tmp_path / "latest") in "ab"
        if os.readlink(tmp_path / "latest") == "b":
            commit.set_link(tmp_path / "latest", "a")
    with failing_disk(None, 0, False) as called:
        commit.set_link(tmp_path / "latest", "a")
    assert called == []


def test_new_folders_are_made_to_last(tmp_path: Path, failing_disk: FailingDisk) -> None:
    with failing_disk(None, 0, False) as called:
        commit.make_folder(tmp_path / "a" / "b")
    opened = [Path(effect[1]) for effect in called if effect[0] == "open"]
    assert opened == [tmp_path, tmp_path / "a"]
    assert sum(effect[0] == "fsync" for effect in called) == 2


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, failing_disk: FailingDisk) -> None:
    with failing_disk(None, 0, False) as called:
        commit.commit_folder(tmp_path / "x", _fill("1"))
    synced: list[str] = []
    for before, effect in itertools.pairwise(called):
        if effect[0] == "fsync":
            synced.append(Path(before[1]).relative_to(tmp_path).as_posix())
        if effect[0] == "replace":
            synced.append("name")
    temporary = ".x.seqloom-tmp"
    assert synced == [f"{temporary}/a", f"{temporary}/inner", f"{temporary}/inner/b", temporary, "name", "."]
