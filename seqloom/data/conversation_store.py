"""One pass over a source of records: everything that is learned from it, on disk, packed into rows.

    tokens, learned    streams of all sequences, in reading order
    train, valid       streams of rows: the numbers of the sequences in each

Which records are held back is decided at the end, by a digest of what they say, so that duplicates and all turns of one
chat stay on one side, whatever the order of the files. At least one record trains, and at least one is held back.
"""

import json
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from seqloom.core.errors import DataError
from seqloom.core.progress import Progress
from seqloom.data.conversations import Chat, Pair, RecordError, Text, understand
from seqloom.data.documents import Reading
from seqloom.data.encode import TRAIN, VALID, read_index, write_index
from seqloom.data.examples import Encoder, Example
from seqloom.data.packing import PackedRows, pack
from seqloom.data.rows import Split
from seqloom.data.shards import StreamWriter, token_dtype
from seqloom.data.sources import Source

FORMAT = 2
"""To be raised whenever the same records would give other streams."""
TOKENS, LEARNED = "tokens", "learned"
RECORDS_PER_REPORT = 200
MASK, NUMBER = np.dtype("u1"), np.dtype("<u4")


class _Tally:
    """What was seen in one pass, record by record and sequence by sequence."""

    def __init__(self) -> None:
        self.records = self.cut = 0
        self.digests = set[int]()
        self.longest, self.longest_origin = 0, ""
        self.owners, self.lengths, self.learned, self.n_bytes = (array("Q") for _ in range(4))
        """One entry a sequence: digest of its record, tokens, learned tokens, bytes of text."""

    def record(self, digest: int) -> None:
        self.records += 1
        self.digests.add(digest)

    def sequence(self, digest: int, example: Example, origin: str) -> None:
        length = len(example.ids)
        self.owners.append(digest)
        self.lengths.append(length)
        self.learned.append(int(example.learned.sum()))
        self.n_bytes.append(example.n_bytes)
        self.cut += example.cut
        if length > self.longest:
            self.longest, self.longest_origin = length, origin


def encode_conversations(
    source: Source, encoder: Encoder, valid_fraction: float, bad_limit: int, folder: Path, progress: Progress
) -> None:
    """Write the streams of a source and their index into an empty folder.

    Raises:
        DataError: more than `bad_limit` records are unusable, or fewer than two different ones are left.
    """
    reading, tally = Reading(source.name, bad_limit), _Tally()
    with (
        StreamWriter(folder, TOKENS, token_dtype(encoder.tokenizer.size)) as tokens,
        StreamWriter(folder, LEARNED, MASK) as learned,
    ):
        for digest, origin, examples in _usable(source, encoder, reading, progress):
            tally.record(digest)
            for example in examples:
                for writer, values in ((tokens, example.ids), (learned, example.learned)):
                    writer.begin()
                    writer.append(values, example.n_bytes)
                tally.sequence(digest, example, origin)
        streams = {TOKENS: tokens.close(), LEARNED: learned.close()}
    held_back = _held_back(source, tally, reading, valid_fraction)
    facts: dict[str, Any] = {
        "records": tally.records,
        "duplicates": tally.records - len(tally.digests),
        "cut": tally.cut,
        "longest": {"tokens": tally.longest, "origin": tally.longest_origin},
        **reading.facts(),
    }
    for side, chosen in ((TRAIN, ~held_back), (VALID, held_back)):
        streams[side], facts[side] = _write_rows(folder, side, np.flatnonzero(chosen), tally, encoder.length)
    progress(f"encoding {source.name}", 1.0)
    write_index(folder, FORMAT, streams, facts)


def read_conversations(folder: Path) -> Split | None:
    """Open what `encode_conversations` wrote; None if it is missing or not whole."""
    if (found := read_index(folder, FORMAT)) is None:
        return None
    streams, facts = found
    train, valid = (
        PackedRows(streams[TOKENS], streams[LEARNED], streams[side], facts[side]) for side in (TRAIN, VALID)
    )
    return Split(train, valid, facts)


def _usable(
    source: Source, encoder: Encoder, reading: Reading, progress: Progress
) -> Iterator[tuple[int, str, list[Example]]]:
    """The records that something is learned from: digest, origin, sequences."""
    for count, (fields, origin) in enumerate(source.records(reading)):
        if count % RECORDS_PER_REPORT == 0:
            progress(f"encoding {source.name}", min(1.0, reading.bytes_read / source.n_bytes))
        try:
            record = understand(fields, source.text_field)
            digest = _digest(record)
            made = list(encoder.examples(record))
        except RecordError as error:
            reading.reject(error.reason, origin, str(error))
            continue
        for _ in range(made.count(None)):
            reading.skip("too long: no answer within task.sequence_length")
        if kept := [example for example in made if example is not None]:
            yield digest, origin, kept


def _digest(record: Chat | Pair | Text) -> int:
    """64 bits that depend on nothing but what a record says."""
    content = record.chat() if isinstance(record, Pair) else record
    try:
        text = json.dumps(content, ensure_ascii=False, sort_keys=True, default=str).encode()
    except UnicodeEncodeError:
        raise RecordError("not text", "half of a surrogate pair in it") from None
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")


def _held_back(source: Source, tally: _Tally, reading: Reading, fraction: float) -> np.ndarray:
    """Which sequences are for evaluation, of which `fraction` of the records are wanted."""
    different = sorted(tally.digests)
    if len(different) < 2:
        raise DataError(_too_few(source, len(different), reading))
    limit = min(max(int(fraction * 2**64), different[0]), different[-2])
    return np.frombuffer(tally.owners, dtype=np.uint64) <= np.uint64(limit)


def _too_few(source: Source, different: int, reading: Reading) -> str:
    found = "one and the same conversation" if different else "no conversation"
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(reading.skipped.items())) or "nothing left out"
    first = (
        f"{source.name}: {found} in it that can be used ({left_out}); two different ones are the least: one to train "
        "on, one held back"
    )
    return "\n  ".join([first, *reading.examples])


def _write_rows(
    folder: Path, side: str, chosen: np.ndarray, tally: _Tally, length: int
) -> tuple[dict[str, Any], dict[str, int]]:
    """Pack the chosen sequences; returns the facts of the stream of rows, and counts."""
    lengths, learned, n_bytes = (
        np.frombuffer(counts, dtype=np.uint64)[chosen] for counts in (tally.lengths, tally.learned, tally.n_bytes)
    )
    writer = StreamWriter(folder, side, NUMBER)
    for row in pack(lengths.tolist(), length):
        writer.begin()
        writer.append(chosen[row], int(n_bytes[row].sum()))
    counts = {"documents": len(chosen), "tokens": lengths, "learned": learned, "bytes": n_bytes}
    return writer.close(), {name: int(np.sum(count)) for name, count in counts.items()}
