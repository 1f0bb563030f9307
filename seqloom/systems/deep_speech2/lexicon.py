"""A set of words as a tree of letters, in flat arrays that Python and C++ both walk.

Node 0 is the beginning of a word. A node's children lie side by side in the order of their letters. A node at which a
word ends holds the word's number in the language model and what a user adds to its score.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqloom.core.errors import DataError

NOWHERE = -1
"""The node of letters that begin no word, and the number of a node at which no word ends."""


@dataclass(frozen=True, eq=False)
class Lexicon:
    """Words by their letters.

    Attributes:
        first: node -> where its children begin; one entry more than nodes.
        letter: node -> its last letter.
        number: node -> number of the word that ends here, or NOWHERE.
        bonus: node -> added to the score of the word that ends here.
    """

    first: NDArray[np.int32]
    letter: NDArray[np.int32]
    number: NDArray[np.int32]
    bonus: NDArray[np.float64]

    def step(self, node: int, letter: int) -> int:
        """The node one letter further, NOWHERE if there is none."""
        if node == NOWHERE:
            return NOWHERE
        start, stop = int(self.first[node]), int(self.first[node + 1])
        at = start + int(np.searchsorted(self.letter[start:stop], letter))
        return at if at < stop and self.letter[at] == letter else NOWHERE


def lexicon(numbers: Mapping[str, int], bonuses: Mapping[str, float], letters: Mapping[str, int]) -> Lexicon:
    """The tree of all words that can be spelt.

    Args:
        numbers: word -> its number in the language model.
        bonuses: word -> what is added to its score; each of these words has a number.
        letters: letter -> its number.
    """
    spelt = sorted(
        (tuple(letters[letter] for letter in word), number, bonuses.get(word, 0.0))
        for word, number in numbers.items()
        if word and all(letter in letters for letter in word)
    )
    first, letter, number, bonus = [], [NOWHERE], [NOWHERE], [0.0]
    waiting = [(0, len(spelt), 0)]  # the words below a node, in the order of the nodes, and how many letters lead there
    for start, stop, depth in waiting:
        first.append(len(letter))
        while start < stop:
            here = spelt[start][0][depth]
            end = start + 1
            while end < stop and spelt[end][0][depth] == here:
                end += 1
            ends_here = len(spelt[start][0]) == depth + 1
            letter.append(here)
            number.append(spelt[start][1] if ends_here else NOWHERE)
            bonus.append(spelt[start][2] if ends_here else 0.0)
            waiting.append((start + ends_here, end, depth + 1))
            start = end
    first.append(len(letter))
    return Lexicon(
        np.array(first, dtype=np.int32),
        np.array(letter, dtype=np.int32),
        np.array(number, dtype=np.int32),
        np.array(bonus, dtype=np.float64),
    )


def read_words(path: Path) -> list[str]:
    """The words of a lexicon file: the first of each line, in lower case.

    What follows it, such as sounds, is skipped, and so is the number of a further pronunciation, `READ(2)`.

    Raises:
        DataError: the file cannot be read or holds no word.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    words = [re.sub(r"\(\d+\)$", "", parts[0].lower()) for line in lines if (parts := line.split())]
    if not words:
        raise DataError(f"{path}: there is no word in it")
    return list(dict.fromkeys(words))


def checked_hotwords(hotwords: Mapping[str, float], letters: Iterable[str]) -> dict[str, float]:
    """Hotwords, each of one word that can be spelt.

    Raises:
        DataError: one holds a space or a letter that the model does not write.
    """
    known = set(letters)
    for word in hotwords:
        if foreign := sorted(set(word) - known):
            raise DataError(f"hotword '{word}': the model does not write {', '.join(map(repr, foreign))}")
        if not word:
            raise DataError("hotword '': it has no letters")
    return dict(hotwords)
