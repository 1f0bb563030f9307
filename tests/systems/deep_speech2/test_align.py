"""When symbols and words are said, in short and in long recordings."""

import pytest
import torch

from seqloom.core.errors import DataError
from seqloom.systems.deep_speech2 import align as aligning
from seqloom.systems.deep_speech2.align import Span, align, greedy_spans, group, spans
from seqloom.systems.deep_speech2.alphabet import ENGLISH, Alphabet
from speech_samples import spoken

ALPHABET = Alphabet(ENGLISH)
WORDS = [
    *("go", "to", "the", "end", "of", "the", "old", "road", "and", "then", "turn", "to", "the", "left"),
    *("where", "a", "tall", "tree", "stands", "by", "the", "water"),
]


def test_frames_of_every_symbol() -> None:
    log_probs = spoken("go on")
    expected = [Span(label, 3 * i, 3 * i + 2, pytest.approx(0.9)) for i, label in enumerate(ALPHABET.encode("go on"))]  # type: ignore[arg-type]
    assert greedy_spans(log_probs) == expected
    assert spans(log_probs, ALPHABET.encode("go on")) == expected
    assert spans(log_probs, []) == []
    assert [word.text for word in group(greedy_spans(log_probs), ENGLISH)] == ["go", "on"]


def test_doubled_letters_are_two() -> None:
    assert [span.start for span in greedy_spans(spoken("oo"))] == [0, 3]


def test_a_known_text_is_found_in_spite_of_what_was_heard() -> None:
    said = align(spoken("go um"), "go on", ALPHABET)
    assert [word.text for word in said] == ["go", "on"]
    assert [span.start for span in said[0].spans] == [0, 3]
    assert 6 <= said[1].spans[0].start < 15
    assert said[1].spans[0].confidence < 0.1 < said[0].spans[0].confidence


def test_a_long_recording_is_aligned_as_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """With words that only one of both has."""
    heard = [*WORDS, *reversed(WORDS)]
    log_probs = spoken(" ".join([*heard[:9], "um", *heard[9:]]))
    text = " ".join([*heard[:30], *heard[31:]])
    whole = align(log_probs, text, ALPHABET)
    sizes = []
    real = aligning.spans

    def counted(part: torch.Tensor, labels: list[int]) -> list[Span]:
        sizes.append(len(part) * (2 * len(labels) + 1))
        return real(part, labels)

    monkeypatch.setattr(aligning, "spans", counted)
    monkeypatch.setattr(aligning, "MOST_CELLS", sizes_limit := 40_000)
    assert align(log_probs, text, ALPHABET) == whole
    assert len(sizes) > 2
    assert max(sizes) <= sizes_limit
    monkeypatch.setattr(aligning, "MOST_CELLS", 4000)
    with pytest.raises(DataError, match="too little in common"):
        align(log_probs, "zoo " * 50, ALPHABET)
    monkeypatch.setattr(aligning, "MOST_PAIRS", 10)
    with pytest.raises(DataError, match="too many to align at once"):
        align(log_probs, text, ALPHABET)


def test_a_script_without_spaces() -> None:
    alphabet = Alphabet(("", "你", "好", "吗"))
    said = align(spoken("你好好吗", alphabet.symbols), "你好 好吗", alphabet)
    assert [(word.text, word.spans[0].start) for word in said] == [("你", 0), ("好", 3), ("好", 6), ("吗", 9)]


def test_texts_that_do_not_fit_are_named() -> None:
    with pytest.raises(DataError, match="outside the alphabet: 'é'"):
        align(spoken("go"), "gé", ALPHABET)
    with pytest.raises(DataError, match=r"'go to the end' does not fit .* needs 13 frames, but there are 6"):
        align(spoken("go"), "go to the end", ALPHABET)
