"""One shared library of the C++ files in this folder, compiled for this very processor when it is first needed.

It is kept in the cache under a digest of the sources, the compiler and what that says of the processor, so a library
in the cache is never wrong. Each object file is kept as well: after a change only what changed is compiled. Of several
processes one builds and the others wait; what a dying one leaves is never taken for whole. Nothing is loaded that does
not match its digest, or that lies where other users can write. If the cache cannot be used, the library is built for
this process alone; if it cannot be built, the portable forms run, with the same results.
"""

import contextlib
import ctypes
import hashlib
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from seqloom.core.cache import WAIT_SECONDS, cache_folder, cached, key
from seqloom.core.checkpoint.commit import make_folder
from seqloom.core.errors import ConfigError, DataError
from seqloom.ops.native.compiler import BuildError, Compiler, find_compiler

FOLDER = Path(__file__).parent
HEADERS, FEW = "system_headers.h", 6
"""Compiled ahead where more sources than a few are to be compiled."""

PATIENCE_SECONDS = 600
"""How long another process may build before we build for ourselves."""

INSTEAD = "; torch forms run instead"

Keep = Callable[[str, str, Callable[[Path], None]], Path]
"""Gives the file of a name and digest, made by the function if it is not there."""


class Outcome(NamedTuple):
    """What became of the library in this process.

    Attributes:
        library: None if there is none.
        compiler: with its version.
        path: where the library is kept; None if it is for this process only.
        reason: why there is none.
    """

    library: ctypes.CDLL | None = None
    compiler: str | None = None
    path: Path | None = None
    reason: str | None = None


def library() -> ctypes.CDLL | None:
    """The library, loaded and if need be built; None if it cannot be had, for the reason that `why_not` gives.

    Raises:
        ConfigError: SEQLOOM_ISA asks for what the compiler or the processor cannot do.
    """
    return outcome().library


def why_not() -> str | None:
    """Why `library` gives nothing; None if it gives a library."""
    return outcome().reason


_outcome: Outcome | None = None
_one_at_a_time = threading.Lock()


def outcome() -> Outcome:
    """What became of the library, which is tried for once in a process; raises as `library`."""
    global _outcome
    if _outcome is None:
        with _one_at_a_time:
            if _outcome is None:
                _outcome = _load()
    return _outcome


def begin() -> None:
    """Load the library, and build it if need be, in a thread of its own while the caller does something else."""
    if _outcome is None:
        threading.Thread(target=_load_ahead, daemon=True).start()


def _load_ahead() -> None:
    with contextlib.suppress(ConfigError):  # who needs the library meets it again
        outcome()


def _renew_lock() -> None:
    global _one_at_a_time
    _one_at_a_time = threading.Lock()


# A thread that holds it does not exist in a forked child.
os.register_at_fork(after_in_child=_renew_lock)


def _load() -> Outcome:
    try:
        compiler = find_compiler()
    except BuildError as error:
        return Outcome(reason=str(error))
    private = None
    try:
        try:
            path = _build(compiler, _in_cache, f"kept in {cache_folder() / 'native'}")
        except (_UnusableError, DataError) as error:
            private = Path(tempfile.mkdtemp(prefix="seqloom-"))
            path = _build(compiler, partial(_in_folder, private), f"for this process only: {error}")
        return Outcome(_open(path), compiler.title, None if private else path)
    except (BuildError, OSError) as error:
        return Outcome(compiler=compiler.title, reason=str(error))
    finally:
        if private is not None:
            shutil.rmtree(private, ignore_errors=True)  # what is loaded stays


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        print(f"seqloom: native kernels cannot be loaded: {error}{INSTEAD}", file=sys.stderr)
        raise BuildError(f"the compiled library cannot be loaded: {error}") from error


def _build(compiler: Compiler, keep: Keep, where: str) -> Path:
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.[ch]*"))}
    keys = {name: key(_included(name, texts), compiler.identity) for name in texts if name.endswith(".cpp")}

    def compiled(header: Future[Path | None] | None, name: str) -> Path:
        ready = header.result() if header is not None and header.done() else None  # not worth waiting for
        return keep(f"{name}.o", keys[name], partial(compiler.compile, FOLDER / name, header=ready))

    def make(target: Path) -> None:
        with (
            _told(f"compiling kernels for this processor with {compiler.title}, once ({where})"),
            tempfile.TemporaryDirectory(dir=target.parent) as room,
        ):
            with ThreadPoolExecutor(_cores()) as pool:
                many = sum(not _in_sight(digest) for digest in keys.values()) > FEW
                header = pool.submit(compiler.precompile, FOLDER / HEADERS, Path(room)) if many else None
                longest_first = sorted(keys, key=lambda name: -len(texts[name]))
                objects = list(pool.map(partial(compiled, header), longest_first))
            compiler.link(objects, target)

    return keep("kernels.so", key(keys, compiler.identity), make)


def _in_sight(digest: str) -> bool:
    """Whether the cache seems to have an object file."""
    try:
        return (cache_folder() / "native" / digest).exists()
    except (DataError, OSError):
        return False


def _included(name: str, texts: dict[str, str]) -> dict[str, str]:
    """A source and all files of ours that it includes, however deep; name -> text."""
    found: dict[str, str] = {}
    waiting = [name]
    while waiting:
        if (each := waiting.pop()) not in found:
            found[each] = texts[each]
            waiting += re.findall(r'^#include "(.+)"', texts[each], re.MULTILINE)
    return dict(sorted(found.items()))


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Say what takes so long, and how it ended: on lines of their own, since others may talk in between."""
    print(f"seqloom: {what}", file=sys.stderr, flush=True)
    start = time.monotonic()
    try:
        yield
    except BaseException as error:
        instead = INSTEAD if isinstance(error, BuildError) else ""
        print(f"seqloom: kernels could not be compiled: {error}{instead}", file=sys.stderr, flush=True)
        raise
    print(f"seqloom: kernels compiled in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Where files are kept ----------------------------------------------------------------------------------------------


class _UnusableError(Exception):
    """The cache cannot be used for what will be run, and why."""


def _in_folder(folder: Path, name: str, digest: str, make: Callable[[Path], None]) -> Path:
    make(folder / name)
    return folder / name


def _in_cache(name: str, digest: str, make: Callable[[Path], None]) -> Path:
    folder = cache_folder() / "native"
    for part in (folder, folder / digest):
        _ensure_own(part)

    def read(content: Path) -> Path | None:
        path = content / name
        return path if _is_whole(path) else None

    def fill(content: Path) -> None:
        content.chmod(0o700)
        make(content / name)
        (content / "sha256").write_text(_digest(content / name), encoding="ascii")

    waited = 0.0

    def wait(stage: str, share: float) -> None:
        nonlocal waited
        waited += WAIT_SECONDS
        if waited > PATIENCE_SECONDS:
            raise _UnusableError(f"another process has been building for {PATIENCE_SECONDS} s ({folder / digest})")

    return cached("native", digest, read, fill, wait)


def _ensure_own(folder: Path) -> None:
    """Make a folder for us alone, or see that nobody else can change what is in it."""
    try:
        if not folder.is_dir():
            make_folder(folder.parent)
            folder.mkdir(0o700, exist_ok=True)
    except OSError as error:
        raise _UnusableError(f"{folder} cannot be written: {error.strerror}") from error
    if not _is_own(folder):
        raise _UnusableError(f"others can write to {folder}")


def _is_own(path: Path) -> bool:
    status = path.stat()
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


def _is_whole(path: Path) -> bool:
    try:
        digest = path.with_name("sha256").read_text(encoding="ascii")
        return _is_own(path.parent) and _is_own(path) and digest == _digest(path)
    except (OSError, ValueError):
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
