"""Rows: targets, borders, padding."""

from pathlib import Path

import pytest
import torch

from seqloom.data.mixture import InOrder
from seqloom.data.rows import NO_TARGET, RowSource, StreamRows
from seqloom.data.shards import StreamWriter, TokenStream, token_dtype

PAD = 0


def stream(folder: Path, *documents: list[int], name: str = "s") -> TokenStream:
    writer = StreamWriter(folder, name, token_dtype(100), shard_tokens=5)
    for document in documents:
        writer.begin()
        writer.append(document, n_bytes=len(document))
    return TokenStream(folder, name, writer.close())


def rows_of(length: int, *streams: TokenStream) -> RowSource:
    stores = [StreamRows(one, length) for one in streams]
    return RowSource(stores, InOrder([len(store) for store in stores]), length, PAD)


def test_targets_are_next_tokens_of_the_same_document(tmp_path: Path) -> None:
    source = rows_of(4, stream(tmp_path, [1, 5, 6, 2], [1, 7, 2], [1, 8, 9, 10, 2]))
    rows = source.rows(range(len(source)))
    assert rows.tokens.tolist() == [[1, 5, 6, 2], [1, 7, 2, 1], [8, 9, 10, 2]]
    assert rows.targets.tolist() == [[5, 6, 2, NO_TARGET], [7, 2, NO_TARGET, 8], [9, 10, 2, NO_TARGET]]
    assert rows.documents.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert (rows.tokens.dtype, rows.targets.dtype, rows.documents.dtype) == (torch.int64, torch.int64, torch.int32)


def test_the_last_target_of_a_row_is_the_first_token_of_the_next(tmp_path: Path) -> None:
    source = rows_of(3, stream(tmp_path, list(range(1, 11))))
    assert source.rows([0, 1, 2]).targets.tolist() == [[2, 3, 4], [5, 6, 7], [8, 9, 10]]
    assert len(source) == 3


def test_the_end_is_padded(tmp_path: Path) -> None:
    source = rows_of(4, stream(tmp_path, [1, 5, 2], [1, 6, 2]))
    rows = source.rows([1])
    assert rows.tokens.tolist() == [[6, 2, PAD, PAD]]
    assert rows.targets.tolist() == [[2, NO_TARGET, NO_TARGET, NO_TARGET]]
    assert rows.documents.tolist() == [[0, 0, -1, -1]]


@pytest.mark.parametrize("tokens", [2, 3, 7])
def test_a_corpus_shorter_than_a_row_is_one_padded_row(tokens: int, tmp_path: Path) -> None:
    source = rows_of(9, stream(tmp_path, list(range(1, tokens + 1))))
    rows = source.rows([0])
    assert len(source) == 1
    assert rows.tokens[0].tolist() == [*range(1, tokens + 1), *[PAD] * (9 - tokens)]
    assert int((rows.targets != NO_TARGET).sum()) == tokens - 1
    assert int((rows.documents == -1).sum()) == 9 - tokens


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 40])
def test_every_token_but_the_first_of_a_document_is_a_target_once(length: int, tmp_path: Path) -> None:
    one = stream(tmp_path, [1, 11, 12, 2], [1, 13, 2], [1, *range(20, 45), 2], name="a")
    two = stream(tmp_path, [1, 50, 51, 2], name="b")
    source = rows_of(length, one, two)
    targets = source.rows(range(len(source))).targets
    expected = [11, 12, 2, 13, 2, *range(20, 45), 2, 50, 51, 2]
    assert targets[targets != NO_TARGET].tolist() == expected


def test_rows_do_not_depend_on_the_batch_they_are_asked_in(tmp_path: Path) -> None:
    source = rows_of(4, stream(tmp_path, [1, *range(10, 60), 2], [1, 3, 2]))
    together = source.rows([3, 0, 3])
    for row, position in enumerate([3, 0, 3]):
        for batch, alone in zip(together, source.rows([position]), strict=True):
            assert torch.equal(batch[row], alone[0])
