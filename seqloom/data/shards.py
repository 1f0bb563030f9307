"""Streams on disk: flat files of little-endian integers, tokens as a rule, that are mapped and never loaded.

A stream is cut into shards of bounded size wherever it is full, even inside a document; a reader sees one array. Beside
them lie the places where documents start. All facts about a stream are in the index that its owner writes.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

SHARD_TOKENS = 1 << 27
OFFSET = np.dtype("<u8")


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest integer that holds every id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class StreamWriter:
    """Writes one stream, document after document."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any], shard_tokens: int = SHARD_TOKENS) -> None:
        self._folder, self._name, self._dtype, self._shard_tokens = folder, name, dtype, shard_tokens
        self._shards: list[int] = []
        self._file: IO[bytes] | None = None
        self._offsets = (folder / f"{name}.offsets").open("wb")
        self._hash = hashlib.sha256()
        self._tokens = self._documents = self._bytes = 0

    def begin(self) -> None:
        """The next tokens start a document."""
        self._offsets.write(np.array(self._tokens, dtype=OFFSET).tobytes())
        self._documents += 1

    def append(self, ids: Sequence[int] | np.ndarray, n_bytes: int) -> None:
        """Add tokens that stand for `n_bytes` bytes of text to the document."""
        rest = np.array(ids, dtype=self._dtype)
        self._hash.update(rest.tobytes())
        self._tokens += len(rest)
        self._bytes += n_bytes
        while len(rest):
            if self._file is None or self._shards[-1] == self._shard_tokens:
                self._next_shard()
            assert self._file is not None
            room = self._shard_tokens - self._shards[-1]
            fits, rest = rest[:room], rest[room:]
            self._file.write(fits.tobytes())
            self._shards[-1] += len(fits)

    def __enter__(self) -> "StreamWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self._file, self._offsets):
            if file is not None:
                file.close()

    def close(self) -> dict[str, Any]:
        """Finish the files.

        Returns:
            the facts that `TokenStream` needs to find and check them.
        """
        self.__exit__()
        return {
            "tokens": self._tokens,
            "documents": self._documents,
            "bytes": self._bytes,
            "dtype": self._dtype.str,
            "shards": self._shards,
            "sha256": self._hash.hexdigest(),
        }

    def _next_shard(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = _shard(self._folder, self._name, len(self._shards)).open("wb")
        self._shards.append(0)


class TokenStream:
    """One stream as a single long array of tokens."""

    def __init__(self, folder: Path, name: str, facts: dict[str, Any]) -> None:
        self.tokens: int = facts["tokens"]
        self.documents: int = facts["documents"]
        self.n_bytes: int = facts["bytes"]
        """Bytes of text that the tokens stand for."""
        self.digest: str = facts["sha256"]
        """SHA-256 of the tokens."""
        self._folder, self._name, self._dtype = folder, name, np.dtype(facts["dtype"])
        self._ends = np.cumsum(facts["shards"], dtype=np.int64)

    def is_whole(self) -> bool:
        """Whether every file is there in its full length."""
        sizes = np.diff(self._ends, prepend=0) * self._dtype.itemsize
        expected = {_shard(self._folder, self._name, index): size for index, size in enumerate(sizes)}
        expected[self._folder / f"{self._name}.offsets"] = np.int64(self.documents * OFFSET.itemsize)
        return all(path.is_file() and path.stat().st_size == size for path, size in expected.items())

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1 as int64; fewer where the stream ends."""
        stop = min(stop, self.tokens)
        parts = []
        while start < stop:
            index = int(np.searchsorted(self._ends, start, side="right"))
            end = min(stop, int(self._ends[index]))
            begin = int(self._ends[index - 1]) if index else 0
            parts.append(self._shards[index][start - begin : end - begin])
            start = end
        return np.concatenate(parts, dtype=np.int64) if parts else np.empty(0, dtype=np.int64)

    def document_of(self, start: int, stop: int) -> np.ndarray:
        """The document, counted from 0, that each of the tokens start..stop-1 belongs to."""
        return np.searchsorted(self._offsets, np.arange(start, stop, dtype=OFFSET), side="right") - 1

    def document(self, index: int) -> np.ndarray:
        """All tokens of one document."""
        last = index + 1 == self.documents
        return self.read(int(self._offsets[index]), self.tokens if last else int(self._offsets[index + 1]))

    @cached_property
    def _shards(self) -> list[np.ndarray]:
        return [np.memmap(_shard(self._folder, self._name, i), self._dtype, mode="r") for i in range(len(self._ends))]

    @cached_property
    def _offsets(self) -> np.ndarray:
        return np.memmap(self._folder / f"{self._name}.offsets", OFFSET, mode="r")


def _shard(folder: Path, name: str, index: int) -> Path:
    return folder / f"{name}-{index:05d}.bin"
