"""Corpora that are on every machine: the sources of Python itself and of the packages installed beside it.

`python:stdlib` is the standard library without its tests and character tables (an eighth of its bytes, and no code to
learn from), with the texts of Python's reference manual that `help()` shows; `python:installed` is every installed
package. Both depend on the machine, so a report states Python's version and a digest of the file list.
"""

import importlib
import sysconfig
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

from seqloom.core.errors import DataError
from seqloom.data.documents import Piece, Reading, cut
from seqloom.data.files import File, find
from seqloom.data.readers import read_text, tolerated

BUILT_IN = "python:"
CORPORA = {
    "python:stdlib": ("stdlib", {"test", "tests", "idle_test", "encodings", "site-packages", "dist-packages"}),
    "python:installed": ("purelib", set[str]()),
}
"""Name -> place in Python's own list of paths, folders that do not belong to it."""

TOPICS = "pydoc_data/topics.py"


def builtin_files(name: str) -> list[File]:
    """The files of a built-in corpus, in reading order.

    Raises:
        DataError: there is no such corpus, or this Python comes without sources.
    """
    if name not in CORPORA:
        raise DataError(f"unknown built-in corpus '{name}'; known: {', '.join(CORPORA)}")
    place, foreign = CORPORA[name]
    root = Path(sysconfig.get_path(place))
    files = [file for file in find(root, foreign) if file.path.suffix == ".py"]
    if not files:
        raise DataError(f"{name}: this Python has no sources under {root}; name a file or folder of your own")
    return files


def read_builtin(files: Sequence[File], reading: Reading) -> Iterator[Piece]:
    """Yield each different source file once, and the manual's topics in place of the module that holds them."""
    known: set[bytes] = set()
    for file in files:
        if file.name == TOPICS:
            topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
            for topic, text in sorted(topics.items()):
                yield from cut([text], f"{file.path}:{topic}")
            continue
        with tolerated(file.path, reading):
            digest = blake2b(file.path.read_bytes(), digest_size=16).digest()
            if digest in known:
                reading.skip("duplicate")
            else:
                known.add(digest)
                yield from read_text(file.path, reading)
