"""Interpolated modified Kneser-Ney: an n-gram model of counted text.

    p(w | h) = (a(h w) - D(a(h w))) / Σ_w a(h w) + γ(h) p(w | h'),      γ(h) = 1 - Σ_w (a(h w) - D(a(h w))) / Σ_w a(h w)

a is the count of the longest n-grams and of those that begin a sentence; for every other one it is in how many words'
company on the left it occurs. Each length has three discounts D(1), D(2), D(3+), from how many n-grams have a = 1..4.
Below single words lies the uniform distribution over all words, the end and the unknown word.
Pruned n-grams are left out of the sum over w in γ alone, so probabilities still sum to one.
Source: Chen and Goodman 1998, section 3; Deep Speech 2 uses pruned Kneser-Ney models of order 5.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqloom.core.errors import ConfigError, DataError
from seqloom.systems.deep_speech2.ngram import BEGIN, END, NEVER, UNKNOWN, Ints, NgramModel, links

HIGHEST_ORDER = 5
FALLBACK = (0.5, 1.0, 1.5)
"""Discounts for a length whose counts of counts do not define them, as in small or artificial text."""


@dataclass(frozen=True)
class Estimate:
    """A model and how it came about.

    Attributes:
        discounts: D(1), D(2), D(3+) for each length of n-grams.
        fallbacks: lengths whose discounts are the fallback.
    """

    model: NgramModel
    discounts: tuple[tuple[float, float, float], ...]
    fallbacks: tuple[int, ...]


class _Level(NamedTuple):
    """The n-grams of one length, in the order of the model's nodes; nodes are counted within their length.

    Attributes:
        suffix: node of the n-gram without its first word, one length below.
        begins: whether it begins a sentence.
    """

    parent: Ints
    word: Ints
    counts: Ints
    suffix: Ints
    begins: NDArray[np.bool_]


def estimate(sentences: Iterable[Sequence[str]], order: int, prune: Sequence[int] = ()) -> Estimate:
    """Estimate a model of order 1 to 5.

    Args:
        sentences: words (or characters) of each sentence, without marks.
        prune: for n-grams of length 1, 2, ...: leave out those counted at most so often; the last number holds for
            all longer ones. A word left out is counted as UNKNOWN.
    Raises:
        ConfigError: order or thresholds are not allowed.
        DataError: there is no text.
    """
    thresholds = _thresholds(order, prune)
    words, row = _numbered(sentences, thresholds[0])
    levels = _count(row, len(words), order)
    used, fallbacks = [], []
    below: NDArray[np.float64] = np.array([1 / (len(words) - 1)])  # the uniform distribution; BEGIN is never predicted
    probs, gammas, kept = [], [], []
    for length, level in enumerate(levels, 1):
        adjusted = _adjusted(level, levels[length] if length < order else None)
        if length == 1:
            adjusted[words.index(BEGIN)] = 0
        discounts = _discounts(adjusted)
        if discounts is None:
            fallbacks.append(length)
        used.append(discounts or FALLBACK)
        keep = (level.counts > thresholds[length - 1]) | (length == 1)
        parents = len(below) if length == 1 else len(levels[length - 2].word)
        total = np.maximum(np.bincount(level.parent, adjusted, parents), 1e-300)
        discounted = (adjusted - np.array((0.0, *used[-1]))[np.minimum(adjusted, 3)]) / total[level.parent]
        gamma = 1.0 - np.bincount(level.parent, np.where(keep, discounted, 0.0), parents)
        below = discounted + gamma[level.parent] * below[level.suffix]
        probs.append(below)
        gammas.append(gamma)
        kept.append(keep)
    return Estimate(_model(order, words, levels, probs, gammas, kept), tuple(used), tuple(fallbacks))


def _thresholds(order: int, prune: Sequence[int]) -> list[int]:
    if not 1 <= order <= HIGHEST_ORDER:
        raise ConfigError(f"order: {order} is not allowed; it must be from 1 to {HIGHEST_ORDER}")
    if len(prune) > order or any(low > high for low, high in pairwise(prune)) or min([0, *prune]) < 0:
        raise ConfigError(
            f"prune: {list(prune)} is not allowed; it must be at most {order} counts from 0, none below the one before"
        )
    found = list(prune) or [0]
    return found + [found[-1]] * (order - len(found))


def _numbered(sentences: Iterable[Sequence[str]], threshold: int) -> tuple[tuple[str, ...], Ints]:
    """The words, sorted after the three marks, and all sentences in a row of word numbers, each begun and ended."""
    first: dict[str, int] = {BEGIN: 0, END: 1, UNKNOWN: 2}
    row: list[int] = []
    for sentence in sentences:
        if BEGIN in sentence or END in sentence:
            raise DataError(
                f"'{' '.join(sentence)[:80]}': {BEGIN} and {END} mark the ends of sentences, they are no words"
            )
        if sentence:
            row += (0, *(first.setdefault(word, len(first)) for word in sentence), 1)
    if not row:
        raise DataError("there is no text to estimate a language model from")
    spoken = np.array(row, dtype=np.int64)
    counts = np.bincount(spoken, minlength=len(first))
    names = list(first)
    known = sorted(name for name, number in first.items() if number > 2 and counts[number] > threshold)
    words = (BEGIN, END, UNKNOWN, *known)
    place = {word: number for number, word in enumerate(words)}
    renumber = np.array([place.get(name, place[UNKNOWN]) for name in names])
    return words, renumber[spoken]


def _count(row: Ints, words: int, order: int) -> list[_Level]:
    """The n-grams of every length: those of length k that end at a place extend those of length k-1 before it."""
    levels = [
        _Level(
            np.zeros(words, dtype=np.int64),
            np.arange(words),
            np.bincount(row, minlength=words),
            np.zeros(words, dtype=np.int64),
            np.arange(words) == 0,
        )
    ]
    nodes = row
    for _ in range(1, order):
        before = np.concatenate((np.full(1, -1), nodes[:-1]))
        places = np.flatnonzero((before >= 0) & (row != 0))
        keys, first, inverse, counts = np.unique(
            before[places] * words + row[places], return_index=True, return_inverse=True, return_counts=True
        )
        parent, word = np.divmod(keys, words)
        levels.append(_Level(parent, word, counts, nodes[places[first]], levels[-1].begins[parent]))
        nodes = np.full(len(row), -1)
        nodes[places] = inverse
    return levels


def _adjusted(level: _Level, longer: _Level | None) -> Ints:
    if longer is None:
        return level.counts.copy()
    company = np.bincount(longer.suffix, minlength=len(level.word))
    return np.where(level.begins, level.counts, company)


def _discounts(adjusted: Ints) -> tuple[float, float, float] | None:
    """D(1), D(2), D(3+); None if the counts of counts do not give discounts between 0 and the count."""
    n1, n2, n3, n4 = (int(np.count_nonzero(adjusted == count)) for count in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return None
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return found if all(0 < discount <= count for count, discount in enumerate(found, 1)) else None


def _model(
    order: int,
    words: tuple[str, ...],
    levels: list[_Level],
    probs: list[NDArray[Any]],
    gammas: list[NDArray[Any]],
    kept: list[NDArray[np.bool_]],
) -> NgramModel:
    """All lengths in one row of nodes, without what is pruned."""
    parent, word, log_prob, backoff = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)], [np.zeros(1)], [np.zeros(1)]
    numbers: Ints = np.zeros(1, dtype=np.int64)  # node within the length below -> node of the model
    size = 1
    for length, (level, keep) in enumerate(zip(levels, kept, strict=True), 1):
        parent.append(numbers[level.parent[keep]])
        word.append(level.word[keep])
        log_prob.append(np.log(probs[length - 1][keep]))
        backoff.append(np.log(gammas[length][keep]) if length < order else np.zeros(int(keep.sum())))
        numbers = np.where(keep, size + np.cumsum(keep) - 1, -1)
        size += int(keep.sum())
    log_prob[1][words.index(BEGIN)] = NEVER
    parents, last = np.concatenate(parent), np.concatenate(word)
    return NgramModel(
        order,
        words,
        parents,
        last,
        np.concatenate(log_prob).astype(np.float32),
        np.concatenate(backoff).astype(np.float32),
        links(order, len(words), parents, last),
    )
