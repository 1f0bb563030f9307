"""What a decoder knows of text before it hears anything: language model, lexicon, hotwords, as one score of prefixes.

    bonus(y) = α ln p_lm(y) + β wc(y) + Σ hotword bonuses

It grows when a symbol completes a word (the space); with a model of characters at every letter, the space between two
words being counted when the second begins. A symbol may be several
letters, as in Deep Speech 2's bigrams; language model and lexicon see the letters. `extend` and `finish` are the rules;
the native decoder follows the same ones over the same arrays.
Paper: Deep Speech 2, section 3.8: Q(y) = ln p_ctc(y | x) + α ln p_lm(y) + β wc(y).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from seqloom.core.config import Ge, config
from seqloom.core.errors import ConfigError
from seqloom.ops.native.ctc_beam import BeamArrays, NgramArrays
from seqloom.systems.deep_speech2.lexicon import NOWHERE, Lexicon, checked_hotwords, lexicon
from seqloom.systems.deep_speech2.ngram import SPACE, NgramModel, Unit

NO_SYMBOL = -1


@config
class Weights:
    """How much a language model counts.

    Attributes:
        alpha: weight of ln p_lm.
        beta: added for every word (or character, with a model of characters).
    """

    alpha: Annotated[float, Ge(0)] = 1.0
    beta: float = 1.0


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """An n-gram model as a decoder uses it."""

    ngrams: NgramModel
    unit: Unit = "word"
    weights: Weights = field(default_factory=Weights)


class Memory(NamedTuple):
    """What the rules remember of a prefix.

    Attributes:
        bonus: of all that is complete.
        node: in the lexicon, of the unfinished word.
        state: of the language model, after all that is complete.
        inside: whether a word is unfinished.
    """

    bonus: float
    node: int
    state: int
    inside: bool


@dataclass(frozen=True, eq=False)
class Prior:
    """The rules for one alphabet; made by `prior`.

    Attributes:
        symbols: of the alphabet, the blank first.
        strict: whether words outside the lexicon are forbidden.
    """

    symbols: tuple[str, ...]
    lexicon: Lexicon
    strict: bool
    model: LanguageModel | None

    @cached_property
    def letters(self) -> dict[str, int]:
        """Letter -> number; the space is none."""
        return letters_of(self.symbols)

    @cached_property
    def spelling(self) -> list[list[int]]:
        """Symbol -> its letters; none for blank and space."""
        return [[self.letters[letter] for letter in symbol if letter != " "] for symbol in self.symbols]

    @cached_property
    def space(self) -> int:
        """The symbol between words, NO_SYMBOL if the alphabet has none."""
        return self.symbols.index(" ") if " " in self.symbols else NO_SYMBOL

    @cached_property
    def letter_words(self) -> list[int]:
        """Letter -> its number in a language model of characters; the space comes last."""
        assert self.model
        return [self.model.ngrams.number(letter) for letter in (*self.letters, SPACE)]

    @cached_property
    def arrays(self) -> BeamArrays:
        """The rules as the native search reads them."""
        sizes = [len(letters) for letters in self.spelling]
        tree = self.lexicon
        return BeamArrays(
            symbols=len(self.symbols),
            space=self.space,
            spelling=_int32(np.cumsum([0, *sizes])),
            letters=_int32([letter for letters in self.spelling for letter in letters]),
            first=_int32(tree.first),
            letter=_int32(tree.letter),
            number=_int32(tree.number),
            bonus=torch.from_numpy(tree.bonus),
            strict=self.strict,
            model=self._ngram_arrays() if self.model else None,
        )

    def _ngram_arrays(self) -> NgramArrays:
        assert self.model
        words, weights = self.model.ngrams, self.model.weights
        return NgramArrays(
            first=_int32(words.first_child),
            word=_int32(words.word),
            link=_int32(words.link),
            log_prob=torch.from_numpy(words.log_prob),
            backoff=torch.from_numpy(words.backoff),
            begin=words.begin_state,
            end=words.end,
            unknown=words.unknown,
            letter_words=_int32(self.letter_words) if self.model.unit == "character" else None,
            alpha=weights.alpha,
            beta=weights.beta,
        )

    @property
    def start(self) -> Memory:
        return Memory(0.0, 0, self.model.ngrams.begin_state if self.model else 0, False)

    def extend(self, memory: Memory, symbol: int) -> Memory | None:
        """What is remembered after one more symbol; None if no such text may be."""
        if symbol == self.space:
            return self._end_word(memory) if memory.inside else memory
        bonus, node, state, inside = memory
        letters = self.spelling[symbol]
        if self.model and self.model.unit == "character":
            again = [self.letter_words[-1]] if not inside and state != self.model.ngrams.begin_state else []
            for word in (*again, *(self.letter_words[letter] for letter in letters)):
                gain, state = self._advance(state, word)
                bonus += gain
        for letter in letters:
            node = self.lexicon.step(node, letter)
        return None if self.strict and node == NOWHERE else Memory(bonus, node, state, True)

    def finish(self, memory: Memory) -> tuple[float, bool]:
        """The bonus of a whole text, and whether a text may end here."""
        ended = self._end_word(memory) if memory.inside and self.space != NO_SYMBOL else memory
        bonus, _, state, _ = ended or memory
        if self.model and state != self.model.ngrams.begin_state:  # something was said
            bonus += self.model.weights.alpha * self.model.ngrams.advance(state, self.model.ngrams.end)[0]
        return bonus, ended is not None

    def _end_word(self, memory: Memory) -> Memory | None:
        bonus, node, state, _ = memory
        number = NOWHERE if node == NOWHERE else int(self.lexicon.number[node])
        if number != NOWHERE:
            bonus += float(self.lexicon.bonus[node])
        elif self.strict:
            return None
        if self.model and self.model.unit == "word":
            gain, state = self._advance(state, self.model.ngrams.unknown if number == NOWHERE else number)
            bonus += gain
        return Memory(bonus, 0, state, False)

    def _advance(self, state: int, word: int) -> tuple[float, int]:
        assert self.model
        log_prob, state = self.model.ngrams.advance(state, word)
        return self.model.weights.alpha * log_prob + self.model.weights.beta, state


def prior(
    symbols: Sequence[str],
    model: LanguageModel | None = None,
    words: Sequence[str] | None = None,
    hotwords: Mapping[str, float] | None = None,
) -> Prior:
    """The rules for an alphabet.

    Args:
        symbols: of the alphabet, the blank first; a symbol with a space in it is the space alone.
        words: the only words that may be, besides the hotwords; None allows any.
        hotwords: word -> what is added to the score wherever it is said, in nats.
    Raises:
        ConfigError: words, hotwords or a model of words are given for an alphabet without a space.
        DataError: a hotword cannot be spelt.
    """
    assert all(symbol == " " or " " not in symbol for symbol in symbols)
    wanted = {"a lexicon": words, "hotwords": hotwords, "a model of words": model and model.unit == "word"}
    if " " not in symbols and (given := [name for name, value in wanted.items() if value]):
        raise ConfigError(f"{given[0]} needs an alphabet with a space, which is where words end")
    letters = letters_of(symbols)
    bonuses = checked_hotwords(hotwords or {}, letters)
    ngrams = model.ngrams if model and model.unit == "word" else None
    listed = [*(words if words is not None else ngrams.words if ngrams else ()), *bonuses]
    numbers = {word: ngrams.number(word) if ngrams else 0 for word in listed}
    return Prior(tuple(symbols), lexicon(numbers, bonuses, letters), words is not None, model)


def letters_of(symbols: Sequence[str]) -> dict[str, int]:
    """Letter -> number, for every letter that symbols are spelt with, but the space."""
    return {letter: number for number, letter in enumerate(sorted(set("".join(symbols)) - {" "}))}


def _int32(values: Sequence[int] | NDArray[np.generic]) -> Int[Tensor, "J"]:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int32))
