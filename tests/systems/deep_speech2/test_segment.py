"""Where audio and aligned words are cut."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from seqloom.data.audio import RATE, Samples
from seqloom.systems.deep_speech2.segment import pieces, utterances
from seqloom.systems.deep_speech2.transcript import Word


def _blocks(samples: Samples, size: int) -> Iterator[Samples]:
    return (samples[start : start + size] for start in range(0, len(samples), size))


def test_audio_is_cut_at_quiet_places_whatever_the_blocks() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 10 * RATE).astype(np.float32)
    samples[round(2.5 * RATE) : round(3.0 * RATE)] = 0
    samples[round(5.1 * RATE) : round(5.6 * RATE)] = 0
    found = list(pieces(_blocks(samples, RATE), 320, longest_seconds=4.0))
    np.testing.assert_array_equal(np.concatenate([piece.samples for piece in found]), samples)
    assert all(piece.start % 320 == 0 and len(piece.samples) <= 4 * RATE for piece in found)
    assert 2.5 < found[1].start / RATE < 3.0
    assert 5.1 < found[2].start / RATE < 5.6
    for size in (777, 3 * RATE, len(samples)):
        others = list(pieces(_blocks(samples, size), 320, longest_seconds=4.0))
        assert [piece.start for piece in others] == [piece.start for piece in found]
    assert list(pieces(iter(()), 320)) == []


def _words(*times: tuple[float, float]) -> list[Word]:
    return [Word(f"w{n}", start, end, 1.0, ()) for n, (start, end) in enumerate(times)]


def test_words_are_cut_at_long_gaps_and_where_too_long() -> None:
    found = utterances(_words((1.0, 2.0), (2.1, 3.0), (4.0, 5.0), (5.2, 9.0), (9.05, 12.0)), 12.1, 0.4, 7.0)
    assert [one.text for one in found] == ["w0 w1", "w2", "w3 w4"]
    assert found[0].start == pytest.approx(0.6)
    assert found[0].end == pytest.approx(3.4)
    assert found[-1].end == 12.1
    assert all(before.end <= after.start for before, after in pairwise(found))
    assert utterances([], 3.0) == []
