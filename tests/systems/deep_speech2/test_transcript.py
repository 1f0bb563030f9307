"""Decoded stretches in seconds."""

import pytest

from seqloom.systems.deep_speech2.alphabet import ENGLISH
from seqloom.systems.deep_speech2.beam_search import decode
from seqloom.systems.deep_speech2.prior import prior
from seqloom.systems.deep_speech2.transcript import Transcript, segment
from speech_samples import spoken


def test_times_of_words_and_characters() -> None:
    log_probs = spoken("go on")
    found = segment(log_probs, decode(log_probs, prior(ENGLISH), best=3), ENGLISH, 0.02, start=10.0)
    assert found.text == "go on"
    assert (found.start, found.end) == (10.0, 10.3)
    assert [(word.text, word.start, word.end) for word in found.words] == [("go", 10.0, 10.1), ("on", 10.18, 10.28)]
    assert [(letter.text, letter.start, letter.end) for letter in found.words[1].characters] == [
        ("o", 10.18, 10.22),
        ("n", 10.24, 10.28),
    ]
    assert found.words[0].confidence == pytest.approx(0.9, abs=1e-4)
    assert len(found.alternatives) == 2
    assert found.confidence > found.alternatives[0].confidence >= found.alternatives[1].confidence
    assert Transcript("x", 20.0, (found, found)).text == "go on go on"


def test_letters_of_a_bigram_share_its_time() -> None:
    symbols = ("", "a", "c", "t", " ", "ca")
    log_probs = spoken("cat at", symbols)
    found = segment(log_probs, decode(log_probs, prior(symbols)), symbols, 0.02)
    assert [word.text for word in found.words] == ["cat", "at"]
    assert [letter.start for letter in found.words[0].characters] == [0.0, 0.02, 0.06]
