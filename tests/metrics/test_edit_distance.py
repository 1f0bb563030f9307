"""Error rates, against jiwer."""

import random

import pytest

from seqloom.metrics.edit_distance import (
    Errors,
    aligned,
    character_error_rate,
    character_errors,
    errors,
    word_error_rate,
    word_errors,
)


def _corpus(seed: int, count: int = 60) -> tuple[list[str], list[str]]:
    """References, and hypotheses with a few of their words replaced, dropped, doubled and misspelt."""
    draw = random.Random(seed)
    words = ["a", "an", "ann", "nan", "to", "two", "tow", "the", "then"]
    references, hypotheses = [], []
    for _ in range(count):
        reference = draw.choices(words, k=draw.randint(1, 9))
        edited = [
            each for word in reference for each in draw.choice(([word], [word], [draw.choice(words)], [], [word, word]))
        ]
        references.append(" ".join(reference))
        hypotheses.append(" ".join(edited))
    return references, hypotheses


def test_rates_equal_those_of_jiwer() -> None:
    jiwer = pytest.importorskip("jiwer")
    for seed in range(5):
        references, hypotheses = _corpus(seed)
        assert word_error_rate(references, hypotheses) == pytest.approx(jiwer.wer(references, hypotheses), abs=1e-12)
        assert character_error_rate(references, hypotheses) == pytest.approx(
            jiwer.cer(references, hypotheses), abs=1e-12
        )


def test_kinds_of_errors() -> None:
    assert errors(["a", "b", "c", "d"], ["a", "x", "c", "d", "e"]) == Errors(1, 0, 1, 4)
    assert errors("abc", "") == Errors(deletions=3, length=3)
    assert errors("", "ab") == Errors(insertions=2)
    assert errors("", "ab").rate == float("inf")
    assert errors("", "").rate == 0
    assert word_errors(["a b", "c"], ["a", "c d"]) == Errors(deletions=1, insertions=1, length=3)
    assert character_errors([" a  b "], ["a b"]) == Errors(length=3)


def test_alignment_holds_both_sequences_and_the_fewest_errors() -> None:
    assert aligned("kitten", "sitting")[0] == ("k", "s")
    for reference, hypothesis in zip(*_corpus(7), strict=True):
        pairs = aligned(reference, hypothesis)
        assert "".join(left for left, _ in pairs if left is not None) == reference
        assert "".join(right for _, right in pairs if right is not None) == hypothesis
        assert (None, None) not in pairs
        assert sum(left != right for left, right in pairs) == _distance(reference, hypothesis)


def test_utterances_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        word_error_rate(["a", "b"], ["a"])


def _distance(a: str, b: str) -> int:
    """The recurrence, as it reads."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        row, before = [i], row
        for j, right in enumerate(b, 1):
            row.append(min(before[j - 1] + (left != right), before[j] + 1, row[-1] + 1))
    return row[-1]
