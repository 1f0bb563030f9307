"""One reader per file format; each yields the documents or records of a file and names what it cannot use.

A line of JSON lines, an element of a JSON list, a row of a parquet file or of a saved dataset is one record; its
document is found under the text field. A text file is one document. A damaged file or record is counted and passed
over; `Reading` decides when it is too much.
"""

import codecs
import contextlib
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from seqloom.core.errors import SeqloomError
from seqloom.core.extras import require
from seqloom.data.documents import Piece, Reading, cut

BLOCK_BYTES = 1 << 20
ROWS_AT_ONCE = 256
KEYS_NAMED = 20
ELEMENT_CHARS = 1 << 26
"""Longest element of a JSON list."""

JSON_LINES = {".jsonl", ".ndjson", ".json"}
TABLES = {".parquet", ".arrow"}
COMPRESSED = {".gz", ".xz", ".zst"}


def file_format(path: Path) -> str:
    """The suffix that decides how a file is read, looking through compression: `.jsonl` for `a.jsonl.zst`."""
    name = path.name.lower()
    suffix = Path(name).suffix
    return Path(Path(name).stem).suffix if suffix in COMPRESSED else suffix


class Record(NamedTuple):
    """An object with named fields."""

    fields: dict[str, Any]
    origin: str
    """The file and the place in it."""

    @property
    def keys(self) -> str:
        """The names of its fields, for an error."""
        return ", ".join(sorted(self.fields)[:KEYS_NAMED]) or "none"


def read_file(path: Path, text_field: str, reading: Reading) -> Iterator[Piece]:
    """Yield the documents of one file; a file that cannot be read to its end is counted as one rejected record.

    Raises:
        DataError: the limit of rejected records is passed.
        ConfigError: the format needs an optional package that is absent.
    """
    kind = file_format(path)
    with tolerated(path, reading):
        if kind in JSON_LINES:
            for record in read_json(path, reading):
                yield from _document(record, text_field, reading)
        elif kind in TABLES:
            for record in read_table(path, reading, text_field):
                yield from _document(record, text_field, reading)
        else:
            yield from read_text(path, reading)


def read_records(path: Path, text_field: str, reading: Reading) -> Iterator[Record]:
    """Yield the records of one file with all their fields; text becomes records with nothing but the text field.

    Raises:
        DataError: the limit of rejected records is passed.
        ConfigError: the format needs an optional package that is absent.
    """
    kind = file_format(path)
    with tolerated(path, reading):
        if kind in JSON_LINES:
            yield from read_json(path, reading)
        elif kind in TABLES:
            yield from read_table(path, reading)
        else:
            for piece in read_text(path, reading):
                yield Record({text_field: piece.text}, piece.origin)


@contextlib.contextmanager
def tolerated(path: Path, reading: Reading) -> Iterator[None]:
    """Count a file that turns out to be damaged as a rejected record, and go on behind the `with` block."""
    try:
        yield
    except SeqloomError:
        raise
    except _damage() as error:
        reading.reject("unreadable file", str(path), f"cannot be read: {error}")


def read_text(path: Path, reading: Reading) -> Iterator[Piece]:
    """The whole file as one document; a file too long to hold is checked to its end before any of it is given out."""
    with _open(path) as stream:
        blocks = _decoded(stream)
        try:
            head = list(islice(blocks, 2))
            for _ in blocks:
                pass
        except UnicodeError as error:
            reading.reject("not UTF-8 text", str(path), str(error))
            return
    if len(head) == 2:
        with _open(path, reading) as stream:
            yield from cut(_decoded(stream), str(path))
        return
    reading.bytes_read += path.stat().st_size
    if "".join(head).strip():
        yield from cut(head, str(path))
    else:
        reading.skip("empty")


def read_json(path: Path, reading: Reading) -> Iterator[Record]:
    """One JSON object a line; or, in a .json file, the elements of one JSON list."""
    with _open(path, reading) as stream:
        as_list = file_format(path) == ".json" and _begins_list(stream)
        for origin, value in _elements(stream, path) if as_list else _lines(stream, path, reading):
            if isinstance(value, dict):
                yield Record(value, origin)
            else:
                reading.reject("not a JSON object", origin, f"expected an object, found {type(value).__name__}")


def read_table(path: Path, reading: Reading, column: str | None = None) -> Iterator[Record]:
    """The rows of a parquet file, or of an Arrow stream as `datasets` stores it.

    Args:
        column: the only one to read; None reads all.
    """
    with _open(path, reading) as stream:
        if file_format(path) == ".parquet":
            table = require("data", "pyarrow.parquet").ParquetFile(stream)
            wanted = None if column is None else [column]
            columns, batches = table.schema_arrow.names, table.iter_batches(ROWS_AT_ONCE, columns=wanted)
        else:
            batches = require("data", "pyarrow").ipc.open_stream(stream)
            columns = batches.schema.names
        if column is not None and column not in columns:
            known = ", ".join(columns[:KEYS_NAMED])
            reading.reject(f"no field '{column}'", str(path), f"no column '{column}'; columns here: {known}")
            return
        number = 0
        for batch in batches:
            for fields in (batch if column is None else batch.select([column])).to_pylist():
                number += 1
                yield Record(fields, f"{path}:{number}")


def _document(record: Record, text_field: str, reading: Reading) -> Iterator[Piece]:
    if text_field not in record.fields:
        missing = f"no field '{text_field}'"
        reading.reject(missing, record.origin, f"{missing}; keys here: {record.keys}")
        return
    text = record.fields[text_field]
    if not isinstance(text, str):
        reading.reject("not text", record.origin, f"field '{text_field}' holds {type(text).__name__}, not text")
    elif not text.strip():
        reading.skip("empty")
    elif not encodable(text):
        reading.reject("not text", record.origin, f"field '{text_field}' holds half of a surrogate pair")
    else:
        yield from cut([text], record.origin)


def _lines(stream: IO[bytes], path: Path, reading: Reading) -> Iterator[tuple[str, Any]]:
    """The values of JSON lines, each with its place; blank lines are nothing."""
    for number, line in enumerate(stream, 1):
        origin = f"{path}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            value = json.loads(text) if text else None
        except (ValueError, RecursionError) as error:
            reading.reject("not JSON", origin, f"not valid JSON in UTF-8: {error}")
            continue
        if text:
            yield origin, value


def _begins_list(stream: IO[bytes]) -> bool:
    head: bytes = cast(io.BufferedReader, stream).peek(64)
    return head.lstrip(codecs.BOM_UTF8 + b" \t\r\n").startswith(b"[")


def _elements(stream: IO[bytes], path: Path) -> Iterator[tuple[str, Any]]:
    """The elements of one JSON list, each with its place, without holding the list.

    Raises:
        ValueError: the list is broken; what stood before has been given out.
    """
    decode, held, number, tried = json.JSONDecoder().raw_decode, "", 0, 0
    before = re.compile(r"\s*\[\s*(?=[^\s\]])")
    for block in chain(_decoded(stream), [""]):
        held += block
        if block and len(held) < 2 * tried:  # an element longer than a block: look at it again when it has doubled
            continue
        at = 0
        while found := before.match(held, at):
            try:
                value, end = decode(held, found.end())
            except (ValueError, RecursionError):
                break
            number, at, before = number + 1, end, re.compile(r"\s*,\s*(?=\S)")
            yield f"{path}: element {number}", value
        held = held[at:]
        tried = len(held)
        if tried > ELEMENT_CHARS:
            raise ValueError(f"element {number + 1} of the list is broken, or longer than {ELEMENT_CHARS:,} characters")
    if not re.fullmatch(r"\s*\]\s*" if number else r"\s*\[\s*\]\s*", held):
        raise ValueError(f"not valid JSON after element {number} of the list")


def encodable(text: str) -> bool:
    """Whether a text is Unicode: JSON can spell half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decoded(stream: IO[bytes]) -> Iterator[str]:
    """Blocks of text; raises UnicodeError with the place in the file for bytes that are no text."""
    decoder, position = codecs.getincrementaldecoder("utf-8-sig")(), 0
    while block := stream.read(BLOCK_BYTES):
        if (zero := block.find(0)) >= 0:
            raise UnicodeError(f"a binary file (zero byte at offset {position + zero})")
        yield _decode(decoder, block, position, final=False)
        position += len(block)
    if rest := _decode(decoder, b"", position, final=True):
        yield rest


def _decode(decoder: codecs.IncrementalDecoder, block: bytes, position: int, final: bool) -> str:
    held = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        value, place = error.object[error.start], position - held + error.start
        raise UnicodeError(f"not UTF-8 text (byte 0x{value:02x} at offset {place})") from None


@contextlib.contextmanager
def _open(path: Path, reading: Reading | None = None) -> Iterator[IO[bytes]]:
    """Open a file for reading its uncompressed bytes, and let `reading` count those taken from disk."""
    with io.FileIO(path) if reading is None else _Counted(path, reading) as file:
        raw: Any = io.BufferedReader(file, BLOCK_BYTES)
        match path.suffix.lower():
            case ".gz":
                with gzip.open(raw) as unpacked:
                    yield cast(IO[bytes], unpacked)
            case ".xz":
                with lzma.open(raw) as unpacked:
                    yield unpacked
            case ".zst":
                decompressor = require("data", "zstandard").ZstdDecompressor()
                with decompressor.stream_reader(raw, read_across_frames=True) as unpacked:
                    yield io.BufferedReader(unpacked, BLOCK_BYTES)
            case _:
                yield raw


class _Counted(io.FileIO):
    def __init__(self, path: Path, reading: Reading) -> None:
        super().__init__(path)
        self._reading = reading

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer) or 0
        self._reading.bytes_read += count
        return count


def _damage() -> tuple[type[Exception], ...]:
    """What a damaged file can raise; packages that are not loaded cannot have raised anything."""
    kinds: list[type[Exception]] = [OSError, EOFError, ValueError, lzma.LZMAError, zlib.error]
    if zstandard := sys.modules.get("zstandard"):
        kinds.append(zstandard.ZstdError)
    return tuple(kinds)
