"""What was said, when, and how sure that is: recordings, their segments, words and characters, in seconds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from seqloom.systems.deep_speech2.align import SpokenWord, group, spans
from seqloom.systems.deep_speech2.beam_search import Hypothesis


@dataclass(frozen=True)
class Character:
    """One letter; a symbol of several letters is cut evenly."""

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Word:
    """
    Attributes:
        confidence: geometric mean over its characters.
    """

    text: str
    start: float
    end: float
    confidence: float
    characters: tuple[Character, ...]


@dataclass(frozen=True)
class Alternative:
    """Another text for a segment, less probable."""

    text: str
    confidence: float


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording that was decoded at once.

    Attributes:
        confidence: share of this text among all that the search kept.
    """

    text: str
    start: float
    end: float
    confidence: float
    words: tuple[Word, ...] = ()
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class Transcript:
    """A recording in words.

    Attributes:
        name: what the recording is called.
        seconds: how long it is.
    """

    name: str
    seconds: float
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments if segment.text)

    @property
    def words(self) -> list[Word]:
        return [word for segment in self.segments for word in segment.words]


def joined(words: Sequence[Word]) -> str:
    """Words as text; where each is one character the script has no spaces."""
    return (" " if any(len(word.text) > 1 for word in words) else "").join(word.text for word in words)


def timed(word: SpokenWord, symbols: Sequence[str], frame_seconds: float, offset: float = 0.0) -> Word:
    """A word in seconds.

    Args:
        frame_seconds: time from one frame to the next.
        offset: when the first frame begins.
    """
    characters = []
    for span in word.spans:
        letters = symbols[span.label]
        start, width = offset + span.start * frame_seconds, (span.stop - span.start) * frame_seconds / len(letters)
        characters += [
            Character(letter, _ms(start + place * width), _ms(start + (place + 1) * width), round(span.confidence, 4))
            for place, letter in enumerate(letters)
        ]
    mean = sum(math.log(max(span.confidence, 1e-9)) for span in word.spans) / len(word.spans)
    return Word(word.text, characters[0].start, characters[-1].end, round(math.exp(mean), 4), tuple(characters))


def segment(
    log_probs: Float[Tensor, "T V"],
    best: Sequence[Hypothesis],
    symbols: Sequence[str],
    frame_seconds: float,
    start: float = 0.0,
    end: float | None = None,
) -> Segment:
    """A decoded stretch with times.

    Args:
        best: of the search, the best first; the others become alternatives.
        start, end: of the stretch, in seconds; by default it begins the recording and ends with its frames.
    """
    said = group(spans(log_probs, best[0].labels), symbols)
    return Segment(
        best[0].text,
        _ms(start),
        _ms(start + len(log_probs) * frame_seconds if end is None else end),
        round(best[0].confidence, 4),
        tuple(timed(word, symbols, frame_seconds, start) for word in said),
        tuple(Alternative(each.text, round(each.confidence, 4)) for each in best[1:]),
    )


def _ms(seconds: float) -> float:
    """To the millisecond."""
    return round(seconds, 3)
