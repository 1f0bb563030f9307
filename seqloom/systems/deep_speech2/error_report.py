"""Where a recogniser errs: references and hypotheses side by side, the usual confusions, the worst utterances.

    REF:  go  ***  six
    HYP:  go  to   SIX

as in NIST's sclite: words that are missing on one side are stars, words that differ are in capitals.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from seqloom.metrics.edit_distance import Errors, aligned, character_errors, count

MOST_CONFUSIONS, MOST_UTTERANCES = 20, 10


class Said(NamedTuple):
    """An utterance: what it is called, what was said, and what was heard."""

    name: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class Utterance:
    """An utterance with its errors; pairs of words, None where a side has none."""

    said: Said
    pairs: tuple[tuple[str | None, str | None], ...]
    errors: Errors


@dataclass(frozen=True)
class ErrorReport:
    """All errors of a set.

    Attributes:
        utterances: those with the most errors per word first, of equal ones the one with more errors.
    """

    words: Errors
    characters: Errors
    utterances: tuple[Utterance, ...]

    @property
    def correct(self) -> int:
        """Utterances without an error."""
        return sum(not each.errors.total for each in self.utterances)

    @property
    def substitutions(self) -> list[tuple[tuple[str, str], int]]:
        """(said, heard) -> how often, the most frequent first."""
        return _ranked((a, b) for a, b in self._pairs() if a is not None and b is not None and a != b)

    @property
    def deletions(self) -> list[tuple[str, int]]:
        return _ranked(a for a, b in self._pairs() if a is not None and b is None)

    @property
    def insertions(self) -> list[tuple[str, int]]:
        return _ranked(b for a, b in self._pairs() if b is not None and a is None)

    def _pairs(self) -> Iterable[tuple[str | None, str | None]]:
        return (pair for each in self.utterances for pair in each.pairs)


def error_report(said: Iterable[Said], spaced: bool = True) -> ErrorReport:
    """Compare what was heard with what was said.

    Args:
        spaced: whether words have spaces between them; without them every character is a word.
    """
    utterances = []
    characters = Errors()
    for one in said:
        split = str.split if spaced else _letters
        pairs = tuple(aligned(split(one.reference), split(one.hypothesis)))
        utterances.append(Utterance(one, pairs, count(pairs)))
        characters += character_errors([one.reference], [one.hypothesis])
    utterances.sort(key=lambda each: (-each.errors.rate, -each.errors.total, each.said.name))
    return ErrorReport(sum((each.errors for each in utterances), Errors()), characters, tuple(utterances))


def side_by_side(pairs: Sequence[tuple[str | None, str | None]]) -> tuple[str, str]:
    """Reference and hypothesis as two lines with the same words below each other."""
    left, right = [], []
    for expected, given in pairs:
        width = max(len(expected or ""), len(given or ""))
        if expected != given:
            expected, given = (word.upper() if word else "*" * width for word in (expected, given))
        left.append((expected or "").ljust(width))
        right.append((given or "").ljust(width))
    return " ".join(left).rstrip(), " ".join(right).rstrip()


def to_text(report: ErrorReport) -> str:
    """The report for reading."""
    lines = []
    for title, counted in (("WER", report.words), ("CER", report.characters)):
        lines.append(
            f"{title} {counted.rate:.2%}: {counted.substitutions:,} substitutions, {counted.deletions:,} deletions, "
            f"{counted.insertions:,} insertions in {counted.length:,}"
        )
    lines.append(f"{report.correct:,} of {len(report.utterances):,} utterances without an error")
    sections: list[tuple[str, list[tuple[str, int]]]] = [
        ("said -> heard", [(f"{a} -> {b}", number) for (a, b), number in report.substitutions]),
        ("not heard", report.deletions),
        ("not said", report.insertions),
    ]
    for title, counts in sections:
        if counts:
            lines += ["", title, *(f"  {number:5,}  {what}" for what, number in counts[:MOST_CONFUSIONS])]
    wrong = [each for each in report.utterances if each.errors.total][:MOST_UTTERANCES]
    if wrong:
        lines += ["", "worst utterances"]
    for each in wrong:
        left, right = side_by_side(each.pairs)
        lines += [f"  {each.said.name} ({each.errors.rate:.0%})", f"    REF: {left}", f"    HYP: {right}"]
    return "\n".join(lines) + "\n"


def to_data(report: ErrorReport) -> dict[str, Any]:
    """All of the report as plain data."""
    return {
        "wer": report.words.rate,
        "cer": report.characters.rate,
        "words": asdict(report.words),
        "characters": asdict(report.characters),
        "correct_utterances": report.correct,
        "substitutions": [{"said": a, "heard": b, "count": number} for (a, b), number in report.substitutions],
        "deletions": [{"said": word, "count": number} for word, number in report.deletions],
        "insertions": [{"heard": word, "count": number} for word, number in report.insertions],
        "utterances": [
            {**each.said._asdict(), **asdict(each.errors), "pairs": [list(pair) for pair in each.pairs]}
            for each in report.utterances
        ],
    }


def _letters(text: str) -> list[str]:
    return list("".join(text.split()))


def _ranked(found: Iterable[Any]) -> list[tuple[Any, int]]:
    return sorted(Counter(found).items(), key=lambda pair: (-pair[1], pair[0]))
