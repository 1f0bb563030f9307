"""The second pass over a source: text becomes two token streams, one to train on and one held back.

A document is stored as `<s> ids </s>` (without `<s>` where the tokenizer has none). Long documents are encoded piece by
piece, so memory does not grow with them. A source whose documents are all the same, such as a single text file, gives
its tail as the held-back part.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from seqloom.core.errors import DataError
from seqloom.core.progress import Progress
from seqloom.data.documents import Piece, Reading, batches, byte_count, safe_cut
from seqloom.data.shards import StreamWriter, TokenStream, token_dtype
from seqloom.data.sources import Source
from seqloom.data.survey import Survey, text_hash
from seqloom.data.tokenizer import TextTokenizer

INDEX = "index.json"
FORMAT = 1
TRAIN, VALID = "train", "valid"


class Store(NamedTuple):
    """One source in tokens."""

    train: TokenStream
    valid: TokenStream
    facts: dict[str, Any]
    """What the survey found, for the report."""


class _Part(NamedTuple):
    text: str
    side: str
    first: bool
    last: bool


def encode(
    source: Source, survey: Survey, tokenizer: TextTokenizer, valid_fraction: float, folder: Path, progress: Progress
) -> None:
    """Write the streams of a source and their index into an empty folder.

    Raises:
        DataError: the source changed since it was surveyed.
    """
    reading = Reading(source.name, bad_limit=sum(survey.facts["skipped"].values()))
    writers = {side: StreamWriter(folder, side, token_dtype(tokenizer.size)) for side in (TRAIN, VALID)}
    begin = [] if tokenizer.bos is None else [tokenizer.bos]
    for parts in batches(_split(source.pieces(reading), survey, valid_fraction)):
        for part, ids in zip(parts, tokenizer.encode_batch([part.text for part in parts]), strict=True):
            writer = writers[part.side]
            if part.first:
                writer.begin()
            marked = [*(begin if part.first else []), *ids, *([tokenizer.eos] if part.last else [])]
            writer.append(marked, byte_count(part.text))
        progress(f"encoding {source.name}", min(1.0, reading.bytes_read / source.n_bytes))
    streams = {side: writer.close() for side, writer in writers.items()}
    if sum(facts["bytes"] for facts in streams.values()) != survey.n_bytes:
        raise DataError(f"{source.name}: changed while it was read; run again")
    progress(f"encoding {source.name}", 1.0)
    write_index(folder, FORMAT, streams, survey.facts)


def read_store(folder: Path) -> Store | None:
    """Open what `encode` wrote; None if it is missing or not whole."""
    if (found := read_index(folder, FORMAT)) is None:
        return None
    streams, facts = found
    return Store(streams[TRAIN], streams[VALID], facts)


def write_index(folder: Path, format_number: int, streams: dict[str, dict[str, Any]], facts: dict[str, Any]) -> None:
    """Complete a folder of streams.

    Args:
        streams: name of each stream -> what closing its writer gave.
        facts: plain data to keep beside them.
    """
    content = {"format": format_number, "streams": streams, "source": facts}
    text = json.dumps({"sha256": _digest(content), "content": content}, indent=1)
    (folder / INDEX).write_text(text, encoding="utf-8")


def read_index(folder: Path, format_number: int) -> tuple[dict[str, TokenStream], dict[str, Any]] | None:
    """The streams and facts of a folder; None if anything is missing, damaged or of another format."""
    try:
        index = json.loads((folder / INDEX).read_bytes())
        content = index["content"]
        if index["sha256"] != _digest(content) or content["format"] != format_number:
            return None
        streams = {name: TokenStream(folder, name, facts) for name, facts in content["streams"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return (streams, content["source"]) if all(stream.is_whole() for stream in streams.values()) else None


def _split(pieces: Iterable[Piece], survey: Survey, fraction: float) -> Iterator[_Part]:
    """Give each document its side."""
    if survey.lowest_other is None:
        yield from _split_tail(pieces, int(survey.n_bytes * (1 - fraction)))
        return
    first, side = True, TRAIN
    for piece in pieces:
        if first:
            side = VALID if survey.held_back(text_hash(piece.text), fraction) else TRAIN
        yield _Part(piece.text, side, first, piece.last)
        first = piece.last


def _split_tail(pieces: Iterable[Piece], train_bytes: int) -> Iterator[_Part]:
    """Cut all text in two, at a line's end if one is near."""
    position, first = 0, True
    for piece in pieces:
        size = byte_count(piece.text)
        if position <= train_bytes < position + size:
            wanted = max(1, len(piece.text.encode()[: train_bytes - position].decode(errors="ignore")))
            at = safe_cut(piece.text, max(0, 2 * wanted - len(piece.text)), wanted)
            yield _Part(piece.text[:at], TRAIN, first, last=True)
            yield _Part(piece.text[at:], VALID, first=True, last=piece.last)
        else:
            yield _Part(piece.text, TRAIN if position < train_bytes else VALID, first, piece.last)
        position, first = position + size, piece.last


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
