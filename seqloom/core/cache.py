"""Prepared data between runs: made once, found again by everything it depends on.

    $SEQLOOM_CACHE or ~/.cache/seqloom
        tokens/<key>/content/         shards and index.json of one source under one tokenizer
        conversations/<key>/content/  the same of what is learned from records, packed
        tokenizers/<key>/content/     a tokenizer trained here
        native/<key>/content/         a compiled kernel, or the library of all of them

A key is a digest of all that decides the content, so nothing in the cache is ever wrong, only unused; deleting any of
it costs time and nothing else. Content appears by one rename when it is complete; of two processes that need the same,
one waits for the other.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from seqloom.core.checkpoint.commit import commit_folder, make_folder
from seqloom.core.checkpoint.lock import hold
from seqloom.core.errors import CheckpointError, DataError
from seqloom.core.progress import Progress

T = TypeVar("T")
WAIT_SECONDS = 0.5


def cache_folder() -> Path:
    """Where prepared data is kept.

    Raises:
        DataError: this user has no home folder, and the variable names no other.
    """
    try:
        return Path(os.environ.get("SEQLOOM_CACHE") or "~/.cache/seqloom").expanduser()
    except RuntimeError as error:
        raise DataError(f"no place for prepared data: {error}; set SEQLOOM_CACHE to a folder") from error


def key(*parts: Any) -> str:
    """A short digest of plain data."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def cached(
    kind: str, name: str, read: Callable[[Path], T | None], make: Callable[[Path], object], progress: Progress
) -> T:
    """What `read` finds under a key, after `make` has filled the folder if it was missing or damaged.

    Args:
        read: opens the content of a folder; None if it is missing or not whole.
    Raises:
        DataError: the cache cannot be written.
    """
    folder = cache_folder() / kind / name
    content = folder / "content"
    if (found := read(content)) is not None:
        return found
    try:
        make_folder(folder)
        with _alone(folder / "lock", progress):
            if (found := read(content)) is None:
                commit_folder(content, make)
                found = read(content)
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: prepared data cannot be written: {error.strerror}; "
            "set SEQLOOM_CACHE to a folder with room that you may write to"
        ) from error
    assert found is not None, f"{content} was just written and cannot be read"
    return found


@contextlib.contextmanager
def _alone(path: Path, progress: Progress) -> Iterator[None]:
    """Hold a lock, after waiting for the process that has it."""
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(hold(path))
                break
            except CheckpointError:
                progress("waiting for another process that prepares the same data", 0.0)
                time.sleep(WAIT_SECONDS)
        yield
