"""File formats, whole and broken."""

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from seqloom.core.errors import DataError
from seqloom.data.documents import Reading
from seqloom.data.readers import BLOCK_BYTES, Record, read_file, read_records

TEXTS = ["first line\nsecond – naïve 東京", "another one"]


def read(path: Path, limit: int = 100) -> tuple[list[str], Reading]:
    reading, texts = Reading(path.name, limit), [""]
    for piece in read_file(path, "text", reading):
        texts[-1] += piece.text
        if piece.last:
            texts.append("")
    return texts[:-1], reading


def zstd(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    half = len(data) // 2  # two frames, as parallel compressors write them
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:]))


PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("suffix", PACKED)
def test_text_is_one_document_under_any_compression(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACKED[suffix](TEXTS[0].encode()))
    texts, reading = read(path)
    assert texts == [TEXTS[0]]
    assert reading.bytes_read == path.stat().st_size


@pytest.mark.parametrize("suffix", PACKED)
def test_json_lines_under_any_compression(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    lines = "\n\n".join(json.dumps({"id": 1, "text": text}) for text in TEXTS)
    path.write_bytes(PACKED[suffix](lines.encode()))
    texts, reading = read(path)
    assert texts == TEXTS
    assert reading.bytes_read == path.stat().st_size
    assert not reading.skipped


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list_under_any_compression(suffix: str, indent: int | None, tmp_path: Path) -> None:
    path = tmp_path / f"a.json{suffix}"
    content = json.dumps([{"text": text} for text in TEXTS * 300], indent=indent, ensure_ascii=False)
    path.write_bytes(PACKED[suffix](b"\xef\xbb\xbf" + content.encode()))
    texts, reading = read(path)
    assert texts == TEXTS * 300
    assert not reading.skipped


def test_a_json_list_is_not_held_and_its_elements_may_be_long(tmp_path: Path) -> None:
    records = [{"text": "a" * length} for length in (10, 3 * BLOCK_BYTES, BLOCK_BYTES - 30, 5, BLOCK_BYTES // 2, 0, 7)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(records))
    reading = Reading("a", 0)
    found = read_records(path, "text", reading)
    assert next(found) == Record(records[0], f"{path}: element 1")
    assert reading.bytes_read < 3 * BLOCK_BYTES
    assert [record.fields for record in found] == records[1:]


@pytest.mark.parametrize(
    ("content", "good", "why"),
    [
        ("[]", 0, None),
        (" [ ]\n", 0, None),
        ('[{"text": "a"}', 1, "not valid JSON after element 1 of the list"),
        ('[{"text": "a"}, {"text": "b"', 1, "not valid JSON after element 1"),
        ('[{"text": "a"} {"text": "b"}]', 1, "not valid JSON after element 1"),
        ('[{"text": "a"},]', 1, "not valid JSON after element 1"),
        ('[{"text": "a"}] more', 1, "not valid JSON after element 1"),
        ('[, {"text": "a"}]', 0, "not valid JSON after element 0"),
        ("[" * 100_000, 0, "not valid JSON after element 0"),
        ('[3, {"text": "a"}]', 1, "element 1: expected an object, found int"),
    ],
)
def test_what_stands_before_the_damage_in_a_json_list_is_read(
    content: str, good: int, why: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    texts, reading = read(path)
    assert texts == ["a"] * good
    assert sum(reading.skipped.values()) == (why is not None)
    assert (why or "") in "".join(reading.examples)


def test_records_have_all_their_fields_and_text_has_one(tmp_path: Path, write_lines: Callable[..., Path]) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"prompt": "a", "turns": [{"role": "b"}]}, {"prompt": "c", "turns": []}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    lines = write_lines("b.jsonl", *rows)
    (tmp_path / "c.txt").write_text("plain")
    for path in (tmp_path / "a.parquet", lines):
        found = list(read_records(path, "text", Reading("a", 0)))
        assert found == [Record(row, f"{path}:{number}") for number, row in enumerate(rows, 1)]
    assert list(read_records(tmp_path / "c.txt", "body", Reading("a", 0))) == [
        Record({"body": "plain"}, str(tmp_path / "c.txt"))
    ]


def test_parquet_and_saved_datasets(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"text": TEXTS * 300, "id": list(range(600))})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    with arrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, arrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    for name in ("a.parquet", "a.arrow"):
        assert read(tmp_path / name)[0] == TEXTS * 300


def test_wrong_records_are_named_by_file_and_line(write_lines: Callable[..., Path]) -> None:
    path = write_lines(
        "a.jsonl",
        {"text": "good"},
        '{"text": "cut off',
        {"body": "x", "id": 3},
        {"text": 5},
        [1],
        {"text": "  "},
        '{"text": "\\ud800"}',
        "",
        {"text": "last"},
    )
    texts, reading = read(path)
    assert texts == ["good", "last"]
    assert reading.skipped == {
        "not JSON": 1,
        "no field 'text'": 1,
        "not text": 2,
        "not a JSON object": 1,
        "empty": 1,
    }
    assert [example.removeprefix(f"{path}:")[:2] for example in reading.examples] == ["2:", "3:", "4:", "5:", "7:"]
    assert "no field 'text'; keys here: body, id" in reading.examples[1]
    assert "field 'text' holds int, not text" in reading.examples[2]
    with pytest.raises(DataError, match=f"{path}:2: not valid JSON"):
        read(path, limit=0)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"abc\0def", r"a binary file \(zero byte at offset 3\)"),
        (b"abc\xff\xfe", r"not UTF-8 text \(byte 0xff at offset 3\)"),
        (b"abc\xe6\x9d", r"not UTF-8 text \(byte 0xe6 at offset 3\)"),
        (
            b"a" * (BLOCK_BYTES - 1) + "é".encode() + b"a" * BLOCK_BYTES + b"\xff",
            f"0xff at offset {2 * BLOCK_BYTES + 1}",
        ),
    ],
)
def test_binary_files_are_named_before_any_of_them_is_used(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    texts, reading = read(path)
    assert texts == []
    assert reading.skipped == {"not UTF-8 text": 1}
    with pytest.raises(DataError, match=why):
        read(path, limit=0)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_truncated_archive_is_one_unreadable_record(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(b"\x1f\x8b no archive at all" if suffix == ".zst" else PACKED[suffix](bytes(9999))[:-20])
    texts, reading = read(path)
    assert texts == []
    assert sum(reading.skipped.values()) == 1
    assert str(path) in reading.examples[0]


def test_a_file_that_cannot_be_opened_and_a_broken_table_are_unreadable_records(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but nothing else")
    for name in ("gone.txt", "a.parquet"):
        texts, reading = read(tmp_path / name)
        assert texts == []
        assert reading.skipped == {"unreadable file": 1}


def test_a_table_without_the_column_names_those_it_has(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"body": ["x"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'text'; columns here: body, id"):
        read(tmp_path / "a.parquet", limit=0)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello"}')
    assert read(tmp_path / "a.txt")[0] == read(tmp_path / "a.jsonl")[0] == ["hello"]


def test_a_file_longer_than_a_block_is_read_whole(tmp_path: Path) -> None:
    text = "".join(f"line {number} é\n" for number in range(200_000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    texts, reading = read(tmp_path / "a.txt")
    assert texts == [text]
    assert reading.bytes_read == len(text.encode())
