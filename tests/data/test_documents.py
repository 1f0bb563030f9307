"""Documents in pieces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqloom.core.errors import DataError
from seqloom.data import documents
from seqloom.data.documents import Piece, Reading, batches, cut, safe_cut
from seqloom.data.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["ab:\n    b\r\n\n\tab. a_b\n  1\n" * 5], 320)


@given(st.lists(st.text(max_size=30)), st.integers(1, 9))
def test_cutting_loses_nothing_and_ends_once(blocks: list[str], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE_CHARS", limit)
        pieces = list(cut(blocks, "origin"))
    assert "".join(piece.text for piece in pieces) == "".join(blocks)
    assert all(len(piece.text) <= limit for piece in pieces)
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@settings(deadline=None)
@given(st.text(alphabet="ab1 \n\r\t.:_é"))
def test_a_safe_cut_changes_no_token(text: str) -> None:
    at = safe_cut(text, 0, len(text))
    if 0 < at < len(text):
        assert TOKENIZER.encode(text[:at]) + TOKENIZER.encode(text[at:]) == TOKENIZER.encode(text)


def test_a_safe_cut_is_the_last_line_end_after_a_letter() -> None:
    assert safe_cut("one\ntwo\n\n   :\n  x", 0, 16) == 7
    assert safe_cut("one\r\ntwo", 0, 8) == 3
    assert safe_cut("no line ends here", 0, 10) == 10


def test_batches_keep_order_and_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "BATCH_CHARS", 5)
    pieces = [Piece("abc"[: n % 3 + 1], "", True) for n in range(10)]
    groups = list(batches(pieces))
    assert [piece for group in groups for piece in group] == pieces
    assert all(sum(len(piece.text) for piece in group) >= 5 for group in groups[:-1])


def test_the_limit_of_unreadable_records_names_the_first_ones() -> None:
    reading = Reading("corpus", bad_limit=2)
    for _ in range(5):
        reading.skip("empty")
    reading.reject("not JSON", "a:1", "why")
    reading.reject("not JSON", "a:2", "why")
    assert reading.facts() == {"skipped": {"empty": 5, "not JSON": 2}, "skipped_examples": ["a:1: why", "a:2: why"]}
    with pytest.raises(DataError, match=r"corpus: more than 2 unreadable records .*bad_line_limit.*\n.*a:1: why"):
        reading.reject("not JSON", "a:3", "why")
