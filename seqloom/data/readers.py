"""One reader per file format; each yields the documents of a file and names what it cannot use.

A text file is one document. A line of JSON lines, a row of a parquet file or of a saved dataset is one document, found
under the text field. A damaged file or record is counted and passed over; `Reading` decides when it is too much.
"""

import codecs
import contextlib
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from seqloom.core.errors import SeqloomError
from seqloom.core.extras import require
from seqloom.data.documents import Piece, Reading, cut

BLOCK_BYTES = 1 << 20
ROWS_AT_ONCE = 256
KEYS_NAMED = 20

JSON_LINES = {".jsonl", ".ndjson", ".json"}
TABLES = {".parquet", ".arrow"}
COMPRESSED = {".gz", ".xz", ".zst"}


def file_format(path: Path) -> str:
    """The suffix that decides how a file is read, looking through compression: `.jsonl` for `a.jsonl.zst`."""
    name = path.name.lower()
    suffix = Path(name).suffix
    return Path(Path(name).stem).suffix if suffix in COMPRESSED else suffix


def read_file(path: Path, text_field: str, reading: Reading) -> Iterator[Piece]:
    """Yield the documents of one file; a file that cannot be read to its end is counted as one rejected record.

    Raises:
        DataError: the limit of rejected records is passed.
        ConfigError: the format needs an optional package that is absent.
    """
    kind = file_format(path)
    with tolerated(path, reading):
        if kind in JSON_LINES:
            yield from read_json_lines(path, text_field, reading)
        elif kind in TABLES:
            yield from read_table(path, text_field, reading)
        else:
            yield from read_text(path, reading)


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


def read_json_lines(path: Path, text_field: str, reading: Reading) -> Iterator[Piece]:
    """One JSON object a line, the document under `text_field`."""
    with _open(path, reading) as stream:
        for number, line in enumerate(stream, 1):
            origin = f"{path}:{number}"
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8").strip() or "null")
            except (ValueError, RecursionError) as error:
                reading.reject("not JSON", origin, f"not valid JSON in UTF-8: {error}")
                continue
            if isinstance(record, dict) and text_field in record:
                yield from _field(record[text_field], text_field, origin, reading)
            elif isinstance(record, dict):
                known = ", ".join(sorted(record)[:KEYS_NAMED]) or "none"
                reading.reject(f"no field '{text_field}'", origin, f"no field '{text_field}'; keys here: {known}")
            elif line.strip():
                reading.reject("not a JSON object", origin, f"expected an object, found {type(record).__name__}")


def read_table(path: Path, text_field: str, reading: Reading) -> Iterator[Piece]:
    """The rows of a parquet file, or of an Arrow stream as `datasets` stores it."""
    with _open(path, reading) as stream:
        if file_format(path) == ".parquet":
            table = require("data", "pyarrow.parquet").ParquetFile(stream)
            columns, batches = table.schema_arrow.names, table.iter_batches(ROWS_AT_ONCE, columns=[text_field])
        else:
            batches = require("data", "pyarrow").ipc.open_stream(stream)
            columns = batches.schema.names
        if text_field not in columns:
            known = ", ".join(columns[:KEYS_NAMED])
            reading.reject(f"no field '{text_field}'", str(path), f"no column '{text_field}'; columns here: {known}")
            return
        number = 0
        for batch in batches:
            for value in batch.column(text_field).to_pylist():
                number += 1
                yield from _field(value, text_field, f"{path}:{number}", reading)


def _field(text: Any, text_field: str, origin: str, reading: Reading) -> Iterator[Piece]:
    if not isinstance(text, str):
        reading.reject("not text", origin, f"field '{text_field}' holds {type(text).__name__}, not text")
    elif not text.strip():
        reading.skip("empty")
    elif not _encodable(text):
        reading.reject("not text", origin, f"field '{text_field}' holds half of a surrogate pair")
    else:
        yield from cut([text], origin)


def _encodable(text: str) -> bool:
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
