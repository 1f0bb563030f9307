"""Where to cut: audio at its quietest places, before it is decoded; aligned words at long blanks, into utterances.

Audio comes in blocks of any size and leaves in pieces of bounded length, each cut amid the quietest stretch of the
second half that it could have had; the cuts do not depend on the blocks.
Paper: Deep Speech 2, section 5.1: aligned recordings are cut where a long run of blanks lies between two words.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from seqloom.data.audio import RATE, Samples
from seqloom.systems.deep_speech2.transcript import Word, joined

LONGEST_SECONDS = 30.0
_STEP = RATE // 100
_QUIET_STEPS = 30
"""0.3 s, over which loudness is averaged."""


class Piece(NamedTuple):
    """A stretch of a recording; `start` in samples."""

    start: int
    samples: Samples


def pieces(blocks: Iterator[Samples], unit: int, longest_seconds: float = LONGEST_SECONDS) -> Iterator[Piece]:
    """A recording in pieces.

    Args:
        unit: samples; every cut is at a multiple of it.
    """
    longest = round(longest_seconds * RATE) // unit * unit
    assert longest >= 2 * unit
    start = 0
    waiting = np.zeros(0, np.float32)
    for block in blocks:
        waiting = np.concatenate((waiting, block))
        while len(waiting) > longest:
            cut = _quietest(waiting[:longest], unit)
            yield Piece(start, waiting[:cut])
            start, waiting = start + cut, waiting[cut:]
    if len(waiting):
        yield Piece(start, waiting)


def _quietest(samples: Samples, unit: int) -> int:
    """Amid the quietest stretch of the second half."""
    count = len(samples) // _STEP
    energy = np.square(samples[: count * _STEP], dtype=np.float64).reshape(count, _STEP).sum(1)
    sums = np.concatenate(([0.0], np.cumsum(energy)))
    width = min(_QUIET_STEPS, count // 2)
    first = count // 2
    loudness = sums[first + width :] - sums[first:-width]
    middle = (first + int(np.argmin(loudness)) + width / 2) * _STEP
    return min(max(unit, round(middle / unit) * unit), len(samples))


class Utterance(NamedTuple):
    """Words that follow each other closely, and the clip around them in seconds."""

    start: float
    end: float
    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        return joined(self.words)


def utterances(
    words: Sequence[Word], seconds: float, gap_seconds: float = 0.3, longest_seconds: float = 15.0
) -> list[Utterance]:
    """Cut aligned words at gaps of at least `gap_seconds`; clips that are still too long are cut at their widest gap.

    Clips reach to the middle of the gaps beside them, but at most `gap_seconds` beyond their words.

    Args:
        seconds: length of the recording.
    """
    groups: list[Sequence[Word]] = []
    waiting = [words] if words else []
    while waiting:
        part = waiting.pop()
        gaps = [after.start - before.end for before, after in pairwise(part)]
        too_long = part[-1].end - part[0].start > longest_seconds
        widest = max(range(len(gaps)), key=gaps.__getitem__, default=0)
        if gaps and (gaps[widest] >= gap_seconds or too_long):
            waiting += (part[widest + 1 :], part[: widest + 1])
        else:
            groups.append(part)
    ends = [0.0, *((a[-1].end + b[0].start) / 2 for a, b in pairwise(groups)), seconds]
    return [
        Utterance(
            round(max(start, part[0].start - gap_seconds), 3),
            round(min(end, part[-1].end + gap_seconds), 3),
            tuple(part),
        )
        for part, start, end in zip(groups, ends, ends[1:], strict=False)
    ]
