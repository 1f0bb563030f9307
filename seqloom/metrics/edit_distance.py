"""How far a transcript is from its reference: the fewest single edits that turn one sequence into the other.

    D_ij = min( D_{i-1,j-1} + [r_i ≠ h_j],  D_{i-1,j} + 1,  D_{i,j-1} + 1 )

The last term runs along a row; D_ij - j makes it a running minimum, so a row takes a few vector operations. Rates are
of a corpus, Σ errors / Σ reference length, never the mean over utterances, in which short ones would weigh too much.
Paper: Deep Speech 2 reports WER for English and CER for Mandarin.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_BOTH, _DELETE, _INSERT = 0, 1, 2


@dataclass(frozen=True)
class Errors:
    """What separates hypotheses from references.

    Attributes:
        length: symbols of the references.
    """

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    length: int = 0

    @property
    def total(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference symbol; infinite where something was found in nothing."""
        if self.length == 0:
            return float("inf") if self.total else 0.0
        return self.total / self.length

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.length + other.length,
        )


def errors(reference: Sequence[T], hypothesis: Sequence[T]) -> Errors:
    """Count the edits of a shortest way from a reference to a hypothesis."""
    return count(aligned(reference, hypothesis))


def count(pairs: Iterable[tuple[T | None, T | None]]) -> Errors:
    """The errors in aligned pairs, as `aligned` gives them."""
    found = [0, 0, 0]
    length = 0
    for expected, given in pairs:
        length += expected is not None
        if expected != given:
            found[_DELETE if given is None else _INSERT if expected is None else _BOTH] += 1
    substitutions, deletions, insertions = found
    return Errors(substitutions, deletions, insertions, length)


def aligned(reference: Sequence[T], hypothesis: Sequence[T]) -> list[tuple[T | None, T | None]]:
    """Reference and hypothesis side by side along a shortest way, None where one has nothing.

    Of equally short ways the one is taken that pairs symbols from the end on wherever it can.
    """
    numbers: dict[T, int] = {}
    wanted = np.array([numbers.setdefault(symbol, len(numbers)) for symbol in reference], dtype=np.int32)
    given = np.array([numbers.setdefault(symbol, len(numbers)) for symbol in hypothesis], dtype=np.int32)
    steps = _steps(wanted, given)
    i, j = len(reference), len(hypothesis)
    pairs: list[tuple[T | None, T | None]] = []
    while i or j:
        step = _DELETE if j == 0 else _INSERT if i == 0 else steps[i - 1, j - 1]
        i -= step != _INSERT
        j -= step != _DELETE
        pairs.append((None if step == _INSERT else reference[i], None if step == _DELETE else hypothesis[j]))
    return pairs[::-1]


def word_errors(references: Iterable[str], hypotheses: Iterable[str]) -> Errors:
    """Errors over the words of all utterances."""
    return _over_all(map(str.split, references), map(str.split, hypotheses))


def character_errors(references: Iterable[str], hypotheses: Iterable[str]) -> Errors:
    """Errors over the characters of all utterances; the single space between two words counts as one."""
    return _over_all(map(_spaced, references), map(_spaced, hypotheses))


def word_error_rate(references: Iterable[str], hypotheses: Iterable[str]) -> float:
    """(S + D + I) / N over the words of all utterances."""
    return word_errors(references, hypotheses).rate


def character_error_rate(references: Iterable[str], hypotheses: Iterable[str]) -> float:
    """(S + D + I) / N over the characters of all utterances, the single space between two words among them."""
    return character_errors(references, hypotheses).rate


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _over_all(references: Iterable[Sequence[str]], hypotheses: Iterable[Sequence[str]]) -> Errors:
    return sum((errors(*pair) for pair in zip(references, hypotheses, strict=True)), Errors())


def _steps(reference: np.ndarray, hypothesis: np.ndarray) -> np.ndarray:
    """The last step of a shortest way to every pair of prefixes, [len(reference), len(hypothesis)]."""
    places = np.arange(len(hypothesis) + 1, dtype=np.int32)
    row = places
    steps = np.empty((len(reference), len(hypothesis)), dtype=np.int8)
    for i, symbol in enumerate(reference):
        both = row[:-1] + (hypothesis != symbol)
        free = np.concatenate((row[:1] + 1, np.minimum(both, row[1:] + 1)))
        following = np.minimum.accumulate(free - places) + places
        steps[i] = np.where(following[1:] == both, _BOTH, np.where(following[1:] == row[1:] + 1, _DELETE, _INSERT))
        row = following
    return steps
