"""When each symbol was said: the most probable path (Viterbi) of known labels through the frames, or of any labels.

A long recording with its transcript is cut where both surely agree, in the middle of runs of words that the greedy
decoding has in common with the transcript, so memory stays bounded; every piece is then aligned exactly.
Paper: Deep Speech 2, section 5.1: transcripts are aligned to recordings with a bidirectional CTC model. A model that
hears the past only says its labels late.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.core.errors import DataError
from seqloom.metrics.edit_distance import aligned
from seqloom.ops.ctc import alignment
from seqloom.systems.deep_speech2.alphabet import Alphabet

MOST_CELLS = 2**24
"""Frames × states of one exact alignment, some 150 MB."""
MOST_PAIRS = 2**28
"""Words heard × words of the transcript that are compared to find where both agree."""
RUN_WORDS = 4
"""Common words in a row that are taken for surely the same."""


class Span(NamedTuple):
    """One symbol in the frames [start, stop).

    Attributes:
        confidence: the highest probability that a frame in it gives the symbol.
    """

    label: int
    start: int
    stop: int
    confidence: float


class SpokenWord(NamedTuple):
    """A word of a transcript and the symbols it was said with."""

    text: str
    spans: tuple[Span, ...]


def spans(log_probs: Float[Tensor, "T V"], labels: Sequence[int]) -> list[Span]:
    """Where labels lie on their most probable path.

    Raises:
        DataError: there are fewer frames than the labels need.
    """
    if not labels:
        return []
    path = alignment(log_probs, torch.tensor(labels, device=log_probs.device)).tolist()
    return _runs([(place // 2, labels[place // 2]) if place % 2 else None for place in path], log_probs)


def greedy_spans(log_probs: Float[Tensor, "T V"]) -> list[Span]:
    """The labels of the most probable path of all, without blanks and repeats, and where they lie."""
    path = log_probs.argmax(-1).tolist()
    number, runs = 0, []
    for frame, label in enumerate(path):
        number += frame > 0 and label != path[frame - 1]
        runs.append((number, label) if label else None)
    return _runs(runs, log_probs)


def align(log_probs: Float[Tensor, "T V"], text: str, alphabet: Alphabet) -> list[SpokenWord]:
    """When each word of a transcript was said; where the alphabet has no space each character counts as a word.

    Args:
        text: words in the characters of the alphabet.
    Raises:
        DataError: characters outside the alphabet, too many of them for the frames, or a long recording that has
            nothing in common with its text.
    """
    spaced = " " in alphabet.symbols
    words = text.split() if spaced else list("".join(text.split()))
    gap = " " if spaced else ""
    found: list[SpokenWord] = []
    for frames, part in _pieces(log_probs, words, gap, alphabet):
        labels = alphabet.encode(gap.join(part))
        try:
            said = spans(log_probs[frames], labels)
        except DataError as error:
            raise DataError(f"'{gap.join(part)[:60]}' does not fit into the recording: {error}") from error
        moved = (span._replace(start=span.start + frames.start, stop=span.stop + frames.start) for span in said)
        found += group(list(moved), alphabet.symbols)
    return found


def group(said: Sequence[Span], symbols: Sequence[str]) -> list[SpokenWord]:
    """Symbols as words, cut at spaces; where the alphabet has no space, every symbol by itself."""
    spaced = " " in symbols
    words: list[list[Span]] = [[]]
    for span in said:
        if symbols[span.label] == " " or not spaced:
            words.append([])
        if symbols[span.label] != " ":
            words[-1].append(span)
    return [SpokenWord("".join(symbols[span.label] for span in word), tuple(word)) for word in words if word]


def _runs(path: list[tuple[int, int] | None], log_probs: Float[Tensor, "T V"]) -> list[Span]:
    """Stretches of frames with the same (number, label)."""
    found: list[Span] = []
    start = 0
    for frame in range(1, len(path) + 1):
        if frame == len(path) or path[frame] != path[start]:
            if (here := path[start]) is not None:
                best = float(log_probs[start:frame, here[1]].max().exp())
                found.append(Span(here[1], start, frame, min(1.0, best)))
            start = frame
    return found


def _pieces(
    log_probs: Float[Tensor, "T V"], words: list[str], gap: str, alphabet: Alphabet
) -> list[tuple[slice, list[str]]]:
    """Frames and words that belong together, each small enough for an exact alignment."""

    def cells(frames: int, part: list[str]) -> int:
        return frames * (2 * len(gap.join(part)) + 1)

    if cells(len(log_probs), words) <= MOST_CELLS:
        return [(slice(0, len(log_probs)), words)]
    found: list[tuple[slice, list[str]]] = []
    frame, word = 0, 0
    ends = [*_agreements(log_probs, words, alphabet), (len(log_probs), len(words))]
    for (next_frame, next_word), beyond in zip(ends, [*ends[1:], (0, 0)], strict=True):
        size = cells(next_frame - frame, words[word:next_word])
        if size > MOST_CELLS:
            raise DataError(
                f"'{gap.join(words[word:next_word])[:60]}': {next_frame - frame:,} frames have too little in common "
                "with their text to be aligned; cut the recording and its text into shorter parts"
            )
        if (next_frame, next_word) == ends[-1] or cells(beyond[0] - frame, words[word : beyond[1]]) > MOST_CELLS:
            found.append((slice(frame, next_frame), words[word:next_word]))
            frame, word = next_frame, next_word
    return found


def _agreements(log_probs: Float[Tensor, "T V"], words: list[str], alphabet: Alphabet) -> list[tuple[int, int]]:
    """Places (frame, word) between two words amid a run that the greedy decoding has in common with the text."""
    heard = group(greedy_spans(log_probs), alphabet.symbols)
    if len(heard) * len(words) > MOST_PAIRS:
        raise DataError(
            f"{len(words):,} words are too many to align at once; cut the recording and its text into parts"
        )
    found, run, i, j = [], 0, 0, 0
    common: list[tuple[int, int]] = []
    for wanted, given in aligned(words, [word.text for word in heard]):
        if wanted is not None and wanted == given:
            common.append((i, j))
            run += 1
        else:
            run = 0
        if run and run % RUN_WORDS == 0:
            (_, before), (word, after) = common[-RUN_WORDS // 2 - 1], common[-RUN_WORDS // 2]
            found.append(((heard[before].spans[-1].stop + heard[after].spans[0].start) // 2, word))
        i += wanted is not None
        j += given is not None
    return found
