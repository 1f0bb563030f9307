"""A disk that fails at a chosen moment, and one that tells what was asked of it."""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

_EFFECTS = ("open", "write", "fsync", "mkdir", "replace", "symlink", "unlink", "rmdir")

FailingDisk = Callable[[int | None, int, bool], AbstractContextManager[list[tuple[Any, ...]]]]


@pytest.fixture(autouse=True)
def _no_plug_is_pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forcing data to the disk takes milliseconds each time and changes nothing unless the power fails."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@contextlib.contextmanager
def _failing_disk(number: int | None, reason: int, lasting: bool) -> Iterator[list[tuple[Any, ...]]]:
    called: list[tuple[Any, ...]] = []

    def faulty(name: str, real: Any) -> Any:
        def effect(*args: Any, **kwargs: Any) -> Any:
            called.append((name, *args))
            index = len(called) - 1
            if number is not None and (index == number or (lasting and index > number)):
                raise OSError(reason, os.strerror(reason))
            return real(*args, **kwargs)

        return effect

    with pytest.MonkeyPatch.context() as patch:
        for name in _EFFECTS:
            patch.setattr(os, name, faulty(name, getattr(os, name)))
        yield called


@pytest.fixture(scope="session")
def failing_disk() -> FailingDisk:
    """`failing_disk(number, errno, lasting)`: that effect on the disk fails (and, if lasting, all later ones).

    Gives the list of effects with their arguments, as they are called; with None as number nothing fails.
    """
    return _failing_disk
