"""The first pass over a source: count it, find out what cannot be used, and draw a sample for a new tokenizer.

Parsing is cheap beside tokenizing, so trouble in the last line shows before any long work, and what the second pass
must know beforehand is known: which documents are held back. That is decided by a hash of the text, so duplicates stay
on one side, whatever the order of the files. The longest document always trains, and at least one other is held back.
"""

import heapq
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from seqloom.core.errors import DataError
from seqloom.core.progress import Progress
from seqloom.data.documents import Reading, batches, byte_count
from seqloom.data.sources import Source

SNIPPET_CHARS = 1 << 13


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a source holds."""

    n_bytes: int
    longest_hash: int
    lowest_other: int | None
    """The lowest hash of a document other than the longest; None if no two documents differ."""
    sample: list[str]
    facts: dict[str, Any]
    """Counts for the report, as plain data."""

    def held_back(self, document_hash: int, fraction: float) -> bool:
        """Whether a document is for evaluation, of which `fraction` of the documents are wanted."""
        assert self.lowest_other is not None
        return document_hash != self.longest_hash and document_hash <= max(int(fraction * 2**64), self.lowest_other)


def survey(source: Source, bad_limit: int, sample_bytes: int, progress: Progress) -> Survey:
    """Read a source once from end to end.

    Args:
        sample_bytes: most bytes of text to keep, drawn evenly from all of it.
    Raises:
        DataError: no document is left, or more than `bad_limit` records are unreadable.
    """
    reading, sample = Reading(source.name, bad_limit), Sample(sample_bytes)
    documents = total = length = 0
    longest, longest_hash, longest_origin = 0, 0, ""
    lowest: list[int] = []
    document_hash: int | None = None
    for batch in batches(source.pieces(reading)):
        for piece in batch:
            size, piece_hash = byte_count(piece.text), text_hash(piece.text)
            sample.offer(piece.text)
            document_hash = piece_hash if document_hash is None else document_hash
            total, length = total + size, length + size
            if piece.last:
                if length > longest:
                    longest, longest_hash, longest_origin = length, document_hash, piece.origin
                lowest = sorted({*lowest, document_hash})[:2]
                documents, length, document_hash = documents + 1, 0, None
        progress(f"reading {source.name}", min(1.0, reading.bytes_read / source.n_bytes))
    if not documents:
        raise DataError(_nothing_left(source, reading))
    progress(f"reading {source.name}", 1.0)
    facts = {"documents": documents, "longest": {"bytes": longest, "origin": longest_origin}, **reading.facts()}
    return Survey(
        n_bytes=total,
        longest_hash=longest_hash,
        lowest_other=next((found for found in lowest if found != longest_hash), None),
        sample=sample.texts(),
        facts=facts,
    )


def text_hash(text: str) -> int:
    """64 bits that depend on nothing but the text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


class Sample:
    """The snippets with the lowest hashes, as many as fit: an even draw that no order of files changes."""

    def __init__(self, n_bytes: int) -> None:
        self._n_bytes = self._room = n_bytes
        self._heap: list[tuple[int, str, int]] = []

    def offer(self, text: str) -> None:
        """Take a text in snippets, and drop those with the highest hashes until all fit."""
        for start in range(0, len(text) if self._n_bytes else 0, SNIPPET_CHARS):
            snippet = text[start : start + SNIPPET_CHARS]
            size = byte_count(snippet)
            heapq.heappush(self._heap, (-text_hash(snippet), snippet, size))
            self._room -= size
            while self._room < 0 and len(self._heap) > 1:
                self._room += heapq.heappop(self._heap)[2]

    def texts(self) -> list[str]:
        """What was kept, in order of hash."""
        return [text for _, text, _ in sorted(self._heap, reverse=True)]


def _nothing_left(source: Source, reading: Reading) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(reading.skipped.items())) or "no records"
    return "\n  ".join([f"{source.name}: no text in it that can be used ({reasons})", *reading.examples])
