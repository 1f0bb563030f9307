"""Text on its way from files to tokens: documents in pieces, and a tally of what was left out.

A corpus is never held in memory. Readers yield `Piece`s; most documents are one piece, a longer one is cut where no
tokenizer joins what is cut: before a line break that follows a letter or digit. A `Reading` is one pass over a source
and remembers how far it got and which records could not be used.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

from seqloom.core.errors import DataError

PIECE_CHARS = 1 << 16
BATCH_CHARS = 1 << 20
EXAMPLES_NAMED = 5


class Piece(NamedTuple):
    """A stretch of one document."""

    text: str
    origin: str
    """The file, or file:line, that holds the document."""
    last: bool
    """The document ends here."""


class Reading:
    """One pass over a source: how far it got, and what it left out and why."""

    def __init__(self, source: str, bad_limit: int) -> None:
        self.bytes_read = 0
        self.skipped: Counter[str] = Counter()
        self.examples: list[str] = []
        self._source, self._bad_limit, self._bad = source, bad_limit, 0

    def skip(self, reason: str) -> None:
        """Leave out a record that is fine but useless: empty, or seen before."""
        self.skipped[reason] += 1

    def reject(self, reason: str, origin: str, detail: str) -> None:
        """Leave out a record that cannot be read.

        Raises:
            DataError: more records were unreadable than the limit allows; the first ones are named.
        """
        self.skipped[reason] += 1
        self._bad += 1
        if len(self.examples) < EXAMPLES_NAMED:
            self.examples.append(f"{origin}: {detail}")
        if self._bad > self._bad_limit:
            limit = f"more than {self._bad_limit} unreadable records (task.data.bad_line_limit)"
            raise DataError("\n  ".join([f"{self._source}: {limit}; the first ones:", *self.examples]))

    def facts(self) -> dict[str, Any]:
        """What was left out, as plain data for the report."""
        return {"skipped": dict(sorted(self.skipped.items())), "skipped_examples": self.examples}


def cut(blocks: Iterable[str], origin: str) -> Iterator[Piece]:
    """Turn one document, given in blocks of any size, into pieces of at most `PIECE_CHARS` characters."""
    held = ""
    for block in blocks:
        text, start = held + block, 0
        while len(text) - start > PIECE_CHARS:
            end = safe_cut(text, start, start + PIECE_CHARS)
            yield Piece(text[start:end], origin, last=False)
            start = end
        held = text[start:]
    yield Piece(held, origin, last=True)


class Text(Protocol):
    """Anything that carries a text."""

    @property
    def text(self) -> str: ...


T = TypeVar("T", bound=Text)


def batches(pieces: Iterable[T]) -> Iterator[list[T]]:
    """Group pieces so that each group is worth the threads of a tokenizer and a report of progress."""
    batch: list[T] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def byte_count(text: str) -> int:
    """Length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def safe_cut(text: str, start: int, end: int) -> int:
    """The last place in (start, end] where cutting changes no token, or `end` if there is none."""
    at = end
    while (at := text.rfind("\n", start + 2, at)) > 0:
        line_end = at - 1 if text[at - 1] == "\r" else at
        if text[line_end - 1].isalnum():
            return line_end
    return end
