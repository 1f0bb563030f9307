"""Every change this house makes to a disk that must survive a crash, in a handful of functions.

A file or folder is written under a temporary name beside its target, forced to the disk (fsync), given its name by one
rename, and the rename is forced to the disk through the parent folder. At any instant the old or the new content is
there under the name, whole. What a dead writer left has a name of its own, so the next one can tell it apart:

    .<name>.seqloom-tmp   unfinished, or on its way out: deleted
    .<name>.seqloom-old   stepped aside for a successor of the same name: put back if that successor never came

One writer at a time per name (see `lock.py`); readers need no lock. All functions raise OSError as it comes.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

_TEMPORARY, _ASIDE = ".seqloom-tmp", ".seqloom-old"


def commit_folder(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder, and give it the name `target` once all of it is on the disk.

    A folder that already has the name is replaced. Whatever `write` raises passes through and leaves no trace.
    """
    _recover(target)
    temporary = _beside(target, _TEMPORARY)
    os.mkdir(temporary)
    try:
        write(temporary)
        for path in sorted(temporary.rglob("*")):
            sync(path)
        sync(temporary)
        _move_in(temporary, target)
    except BaseException:
        _discard(temporary)
        raise


def remove_folder(path: Path) -> None:
    """Delete a folder so that it is gone at once under its name, never half there."""
    leaving = _beside(path, _TEMPORARY)
    os.replace(path, leaving)
    sync(path.parent)
    _discard(leaving)


def write_file(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all, replacing a file or link of this name."""
    temporary = _beside(path, _TEMPORARY)
    try:
        _write(temporary, data, os.O_TRUNC)
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        _discard(temporary)
        raise
    sync(path.parent)


def set_link(path: Path, target: str) -> None:
    """Make `path` a symbolic link to `target` (relative to the link), in one move if there was one before."""
    if path.is_symlink() and os.readlink(path) == target:
        return
    temporary = _beside(path, _TEMPORARY)
    temporary.unlink(missing_ok=True)
    os.symlink(target, temporary)
    os.replace(temporary, path)
    sync(path.parent)


def append(path: Path, data: bytes) -> None:
    """Add bytes at the end of a file: safe from the death of the process at once, from a power loss after `sync`."""
    _write(path, data, os.O_APPEND)


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, to stay after a power loss."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(parent: Path) -> None:
    """Clear up what dead writers left in a folder; only for one who alone may write there."""
    for suffix in (_TEMPORARY, _ASIDE):
        for entry in list(parent.glob(f".*{suffix}")):
            _recover(parent / entry.name[1:].removesuffix(suffix))


def check_writable(folder: Path) -> None:
    """Do in small what a commit does in a folder, so that a disk that refuses does so before the work."""
    trial = _beside(folder / "trial", _TEMPORARY)
    os.mkdir(trial)
    write_file(trial / "file", bytes(4096))
    set_link(trial / "link", "file")
    shutil.rmtree(trial)


def _recover(target: Path) -> None:
    """Undo what a dead writer of this target left half done."""
    aside = _beside(target, _ASIDE)
    if aside.exists() and not target.exists():
        os.replace(aside, target)
        sync(target.parent)
    _discard(aside)
    _discard(_beside(target, _TEMPORARY))


def _move_in(temporary: Path, target: Path) -> None:
    aside = _beside(target, _ASIDE)
    occupied = target.exists()
    if occupied:  # no portable call swaps two folders, hence the second name and its recovery in `sweep`
        os.replace(target, aside)
    try:
        os.replace(temporary, target)
    except OSError:
        if occupied:
            os.replace(aside, target)
        raise
    sync(target.parent)
    if occupied:
        _discard(aside)


def _discard(path: Path) -> None:
    """Delete a leftover; one that will not go (a reader on a network file system) is left to the next sweep."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _write(path: Path, data: bytes, flag: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}{suffix}")
