"""Prepared data between runs."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from seqloom.core import cache as module
from seqloom.core.cache import cache_folder, cached, key
from seqloom.core.checkpoint.lock import hold
from seqloom.core.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEQLOOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read(folder: Path) -> str | None:
    path = folder / "value"
    return path.read_text() if path.is_file() and path.read_text() else None


def quiet(stage: str, share: float) -> None:
    pass


def make(value: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "value").write_text(value)


def test_content_is_made_once_and_made_again_when_damaged(cache: Path) -> None:
    assert cached("kind", "name", read, make("first"), quiet) == "first"
    assert cached("kind", "name", read, make("second"), quiet) == "first"
    (cache / "kind" / "name" / "content" / "value").write_text("")
    assert cached("kind", "name", read, make("third"), quiet) == "third"
    assert [path.name for path in sorted((cache / "kind" / "name").iterdir())] == ["content", "lock"]


def test_a_failure_leaves_nothing_behind(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "value").write_text("half")
        raise DataError("no")

    with pytest.raises(DataError, match=r"^no$"):
        cached("kind", "name", read, fail, quiet)
    assert [path.name for path in (cache / "kind" / "name").iterdir()] == ["lock"]


def test_another_process_at_work_is_waited_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.01)
    folder = cache / "kind" / "name"
    folder.mkdir(parents=True)
    locked = threading.Event()

    def other() -> None:
        with hold(folder / "lock"):
            locked.set()
            time.sleep(0.1)
            (folder / "content").mkdir()
            (folder / "content" / "value").write_text("theirs")

    thread = threading.Thread(target=other)
    thread.start()
    locked.wait()
    told: list[str] = []
    assert cached("kind", "name", read, make("mine"), lambda stage, share: told.append(stage)) == "theirs"
    assert set(told) == {"waiting for another process that prepares the same data"}
    thread.join()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEQLOOM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=f"{tmp_path / 'file'}.* cannot be written: .*; set SEQLOOM_CACHE"):
        cached("kind", "name", read, make("x"), quiet)


def test_the_place_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", os.sep + "home")
    monkeypatch.setenv("SEQLOOM_CACHE", "~/mine")
    assert cache_folder() == Path("/home/mine")
    monkeypatch.delenv("SEQLOOM_CACHE")
    assert cache_folder() == Path("/home/.cache/seqloom")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQLOOM_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(DataError, match=r"no place for prepared data: .*; set SEQLOOM_CACHE to a folder$"):
        cache_folder()


def test_keys_follow_their_parts() -> None:
    assert key("a", 1, ["b"]) == key("a", 1, ["b"])
    assert len({key("a", 1), key("a", 2), key("a1"), key(["a", 1])}) == 4
