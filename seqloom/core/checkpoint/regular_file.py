"""Opening a file of a folder that nobody here wrote.

A path in such a folder may be anything: a link out of it, a pipe that never answers, a device. One rule for all:

    what is opened is a regular file that lies, with all links followed, inside the folder itself; or, for a folder
    `snapshots/<revision>` of a Hugging Face cache, in the `blobs` beside `snapshots`, where its links point.

It is decided before the file is opened, and looked at again after.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from seqloom.core.errors import CheckpointError


def real_path(path: Path, folder: Path | None = None) -> Path:
    """Where a file of a folder really lies, if the rule allows it.

    Args:
        folder: the folder, if it is not the one that `path` is directly in.
    Raises:
        CheckpointError: missing, out of bounds, or no regular file.
    """
    try:
        home, real = (folder or path.parent).resolve(strict=True), path.resolve(strict=True)
        mode = real.stat().st_mode
    except FileNotFoundError:
        broken = path.is_symlink()
        raise CheckpointError(f"{path}: {'a link to nothing' if broken else 'missing'}") from None
    except RuntimeError:  # before Python 3.13
        raise CheckpointError(f"{path}: a link that leads to itself") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise CheckpointError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not real.is_relative_to(home) and not _is_cached(home, real):
        raise CheckpointError(f"{path}: a link that leaves its folder, to {real}; put a copy in its place")
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path}: {_KINDS.get(stat.S_IFMT(mode), 'a special file')}, not a regular file")
    return real


@contextlib.contextmanager
def opened(path: Path, folder: Path | None = None, real: Path | None = None) -> Iterator[int]:
    """A descriptor for reading a regular file; every OSError of the `with` block is told with the file's name.

    Args:
        real: what `real_path` found earlier, to spare looking again.
    Raises:
        CheckpointError: `real_path` refuses it, or it cannot be opened or read.
    """
    real = real or real_path(path, folder)
    try:
        # Without O_NONBLOCK a pipe put here after the check would hold us for ever.
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise CheckpointError(f"{path}: not a regular file")
            yield descriptor
        finally:
            os.close(descriptor)
    except EOFError:
        raise CheckpointError(f"{path}: became shorter while it was read") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_into(descriptor: int, memory: memoryview, start: int) -> None:
    """Fill memory with the bytes of a file from `start` on; EOFError if there are not so many."""
    os.lseek(descriptor, start, os.SEEK_SET)
    while memory:
        count = os.readv(descriptor, [memory])
        if count == 0:
            raise EOFError
        memory = memory[count:]


def _is_cached(folder: Path, real: Path) -> bool:
    return folder.parent.name == "snapshots" and real.parent == folder.parent.parent / "blobs"


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
