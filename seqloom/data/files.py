"""Which files a source consists of, in a fixed order, and a digest that names the list."""

import hashlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple


class File(NamedTuple):
    """A file as it was found; size and time tell later whether it is still the same."""

    path: Path
    name: str
    """Its place below the root of the source, with forward slashes."""
    n_bytes: int
    modified_ns: int


def find(root: Path, passed_over: Collection[str] = ()) -> list[File]:
    """Every file below a folder, sorted; hidden folders, Python's caches and the folders named are passed over.

    Raises:
        OSError: a folder cannot be listed.
    """
    found: list[File] = []
    for folder, folders, names in os.walk(root, onerror=_refuse):
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in {"__pycache__", *passed_over})
        paths = [Path(folder, name) for name in sorted(names)]
        found += [seen(path, root) for path in paths if path.is_file()]
    return found


def seen(path: Path, root: Path) -> File:
    """Look at one file."""
    status = path.stat()
    return File(path, path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns)


def list_digest(files: Sequence[File]) -> str:
    """SHA-256 over names and sizes: the same on every machine that has the same files."""
    return hashlib.sha256("".join(f"{file.name}\0{file.n_bytes}\n" for file in files).encode()).hexdigest()


def _refuse(error: OSError) -> None:
    raise error
