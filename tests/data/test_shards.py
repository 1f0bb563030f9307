"""Token streams on disk."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqloom.data.shards import StreamWriter, TokenStream, token_dtype


def write(folder: Path, documents: list[list[int]], shard_tokens: int = 7, vocab_size: int = 300) -> TokenStream:
    writer = StreamWriter(folder, "s", token_dtype(vocab_size), shard_tokens)
    for document in documents:
        writer.begin()
        for start in range(0, len(document), 5):
            writer.append(document[start : start + 5], n_bytes=3)
    return TokenStream(folder, "s", writer.close())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=40), min_size=1, max_size=12), st.integers(1, 50))
def test_a_stream_reads_as_one_array_however_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], shard_tokens: int
) -> None:
    stream = write(tmp_path_factory.mktemp("s"), documents, shard_tokens)
    whole = [token for document in documents for token in document]
    owners = [number for number, document in enumerate(documents) for _ in document]
    assert (stream.tokens, stream.documents) == (len(whole), len(documents))
    assert stream.is_whole()
    assert [stream.document(number).tolist() for number in range(len(documents))] == documents
    for start in range(0, len(whole), 3):
        for stop in (start, start + 1, start + 11, len(whole) + 5):
            assert stream.read(start, stop).tolist() == whole[start:stop]
        assert stream.document_of(start, start + 2)[: len(whole) - start].tolist() == owners[start : start + 2]


def test_a_document_longer_than_a_shard_spans_shards(tmp_path: Path) -> None:
    stream = write(tmp_path, [list(range(100))], shard_tokens=30)
    assert [path.stat().st_size for path in sorted(tmp_path.glob("*.bin"))] == [60, 60, 60, 20]
    assert stream.read(25, 95).tolist() == list(range(25, 95))
    assert not stream.document_of(0, 100).any()


@pytest.mark.parametrize(("vocab_size", "size"), [(1 << 16, 2), ((1 << 16) + 1, 4)])
def test_tokens_take_as_few_bytes_as_they_can(vocab_size: int, size: int, tmp_path: Path) -> None:
    stream = write(tmp_path, [[0, vocab_size - 1]], vocab_size=vocab_size)
    assert (tmp_path / "s-00000.bin").read_bytes() == np.array([0, vocab_size - 1]).astype(f"<u{size}").tobytes()
    assert stream.read(0, 2).tolist() == [0, vocab_size - 1]


def test_the_digest_follows_the_tokens_and_not_the_cuts(tmp_path: Path) -> None:
    digests = []
    for number, (documents, cut) in enumerate([([[1, 2, 3]], 2), ([[1, 2, 3]], 9), ([[1, 2, 4]], 9)]):
        (tmp_path / str(number)).mkdir()
        digests.append(write(tmp_path / str(number), documents, cut).digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("name", ["s-00001.bin", "s.offsets"])
def test_missing_and_shortened_files_are_noticed(name: str, tmp_path: Path) -> None:
    stream = write(tmp_path, [[1] * 20, [2]])
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1])
    assert not stream.is_whole()
    path.unlink()
    assert not stream.is_whole()
