"""An n-gram language model with backoff, as flat arrays that NumPy and C++ both read.

    p(w | h) = p*(h w)              if the n-gram h w is listed
             = b(h) p(w | h')       otherwise, h' being h without its first word, and b(h) = 1 for an unlisted h

Every listed n-gram is a node; node 0 is the empty one. A node's children, the n-grams one word longer, lie side by
side in the order of their last word, and all nodes of one length before those of the next, so the key
`parent · V + word` grows with the node and one sorted array answers every look-up. `link` leads to the longest listed
proper suffix. What a decoder remembers of the past is then one number, the node of the longest listed suffix.
Paper: Deep Speech 2, section 3.8; the format's meaning is that of ARPA files.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seqloom.metrics.language import perplexity

Unit = Literal["word", "character"]
"""What a model counts. A character model writes the space between two words as SPACE."""

BEGIN, END, UNKNOWN, SPACE = "<s>", "</s>", "<unk>", "<space>"
ROOT = 0
LN10 = math.log(10)
NEVER = -99 * LN10
"""ln p of BEGIN, which no word is followed by, in the words of ARPA files."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class NgramModel:
    """A backoff model over words (or characters), read by `arpa.read_arpa` or made by `ngram_estimate.estimate`.

    Attributes:
        order: words of the longest n-grams.
        words: word number -> word; the three marks are among them.
        parent: node -> its n-gram without the last word.
        word: node -> the last word of its n-gram.
        log_prob: node -> ln p* of the last word after the others.
        backoff: node -> ln b.
        link: node -> the longest listed proper suffix.
    """

    order: int
    words: tuple[str, ...]
    parent: Ints = field(repr=False)
    word: Ints = field(repr=False)
    log_prob: Floats = field(repr=False)
    backoff: Floats = field(repr=False)
    link: Ints = field(repr=False)

    def __len__(self) -> int:
        """How many n-grams are listed."""
        return len(self.word) - 1

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Word -> word number."""
        return {word: number for number, word in enumerate(self.words)}

    @property
    def unknown(self) -> int:
        return self.numbers[UNKNOWN]

    @property
    def end(self) -> int:
        return self.numbers[END]

    @cached_property
    def begin_state(self) -> int:
        """What is remembered before the first word of a sentence."""
        return int(self.children(np.array([ROOT]), np.array([self.numbers[BEGIN]]))[0])

    @cached_property
    def first_child(self) -> Ints:
        """Node -> where its children begin; one entry more than nodes."""
        return np.searchsorted(self.parent[1:], np.arange(len(self.word) + 1)) + 1

    def number(self, word: str) -> int:
        """A word's number, that of UNKNOWN for one that the model does not list."""
        return self.numbers.get(word, self.unknown)

    def children(self, nodes: Ints, words: Ints) -> Ints:
        """The nodes one word longer; -1 where there is none (or no node to begin with)."""
        return find(self._keys, np.where(nodes < 0, -1, nodes * len(self.words) + words))

    def advance(self, state: int, word: int) -> tuple[float, int]:
        """ln p(word | what is remembered), and what is remembered after it."""
        total = 0.0
        while True:
            start, stop = self._bounds[state], self._bounds[state + 1]
            at = start + int(np.searchsorted(self.word[start:stop], word))
            if at < stop and self.word[at] == word:
                return total + float(self.log_prob[at]), at
            assert state != ROOT, "every word is a unigram"
            total += float(self.backoff[state])
            state = int(self.link[state])

    def log_probs(self, sentence: Sequence[str]) -> NDArray[np.float64]:
        """ln p of every word of a sentence and of its end."""
        return self._log_probs([sentence])

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> "Perplexity":
        """How well the model predicts text, ends of sentences among it."""
        sentences = list(sentences)
        nats = -self._log_probs(sentences)
        known = np.array([word in self.numbers for words in sentences for word in (*words, END)], dtype=bool)
        without = int(known.sum())
        return Perplexity(
            perplexity=perplexity(float(nats.sum()), max(1, len(nats))),
            without_unknown=perplexity(float(nats[known].sum()), max(1, without)),
            tokens=len(nats),
            unknown=len(nats) - without,
            sentences=len(sentences),
        )

    def _log_probs(self, sentences: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """All sentences at once: the n-grams of length k ending at a place extend those of length k-1 before it."""
        begin = self.numbers[BEGIN]
        row = [n for words in sentences for n in (begin, *(self.number(word) for word in words), self.end)]
        words = np.array(row, dtype=np.int64)
        before = np.full(len(words), ROOT, dtype=np.int64)  # the n-gram of length k-1 that ends just before a place
        total = np.zeros(len(words))
        for _ in range(self.order):
            nodes = self.children(before, words)
            listed = nodes >= 0
            total = np.where(listed, self.log_prob[nodes], total + np.where(before > ROOT, self.backoff[before], 0.0))
            before = np.concatenate((np.full(1, -1), nodes[:-1]))
        return total[words != begin]

    @cached_property
    def _keys(self) -> Ints:
        return self.parent[1:] * len(self.words) + self.word[1:]

    @cached_property
    def _bounds(self) -> list[int]:
        return self.first_child.tolist()


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts text.

    Attributes:
        without_unknown: over the words that the model lists.
        tokens: words and ends of sentences.
        unknown: words that the model does not list.
    """

    perplexity: float
    without_unknown: float
    tokens: int
    unknown: int
    sentences: int


def find(keys: Ints, wanted: Ints) -> Ints:
    """1 + where each wanted key lies in sorted keys; -1 where it is not among them."""
    if len(keys) == 0:
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at + 1, -1)


def links(order: int, words: int, parent: Ints, word: Ints) -> Ints:
    """The longest listed proper suffix of every node: a child, by the same word, of a suffix of its parent."""
    keys = parent[1:] * words + word[1:]
    link = np.zeros(len(word), dtype=np.int64)
    begin, stop = 1, 1 + words
    while stop < len(word):
        begin, stop = stop, int(np.searchsorted(parent[1:], stop)) + 1  # the nodes whose parents have links already
        nodes = np.arange(begin, stop)
        suffix = link[parent[nodes]]
        for _ in range(order):
            found = find(keys, np.where(suffix < 0, -1, suffix * words + word[nodes]))
            link[nodes] = np.where(found >= 0, found, link[nodes])
            suffix = np.where((found >= 0) | (suffix <= ROOT), -1, link[np.maximum(suffix, 0)])
    return link


def tokens(text: str, unit: Unit) -> list[str]:
    """A line of text as the model counts it."""
    words = text.split()
    if unit == "word":
        return words
    return [SPACE if letter == " " else letter for letter in " ".join(words)]
