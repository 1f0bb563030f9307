"""What the outputs stand for: the blank, then characters, or characters and pairs of letters.

Bigrams are cut without overlap inside each word, and an odd last letter stays alone (Deep Speech 2, section 3.6):
"the cat sat" -> th e _ ca t _ sa t. They halve the number of labels, which allows longer steps in time. A pair that the
alphabet lacks is written as its two letters.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from seqloom.core.checkpoint.json_file import read_json
from seqloom.core.errors import CheckpointError, ConfigError, DataError

ENGLISH = ("", *"abcdefghijklmnopqrstuvwxyz", "'", " ")
ALPHABET = "alphabet.json"
_NAMED = 20  # characters that an error lists

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_POWERS = ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))


class Alphabet:
    """The text that each output stands for.

    Attributes:
        symbols: by output; the first, "", is the blank. Further empty ones are outputs that the texts had no use for.
    """

    def __init__(self, symbols: tuple[str, ...]) -> None:
        assert symbols
        assert symbols[0] == ""
        self.symbols = symbols
        self._ids = {symbol: index for index, symbol in enumerate(symbols) if symbol}

    def __len__(self) -> int:
        return len(self.symbols)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alphabet) and self.symbols == other.symbols

    def __hash__(self) -> int:
        return hash(self.symbols)

    def encode(self, text: str) -> list[int]:
        """The outputs that spell a text.

        Raises:
            DataError: characters that are not in the alphabet, listed.
        """
        if outside := self.outside(text):
            raise DataError(f"{text[:60]!r} has characters outside the alphabet: {listed(outside)}")
        ids: list[int] = []
        for word in re.split("( )", text):
            for pair in (word[start : start + 2] for start in range(0, len(word), 2)):
                ids += [self._ids[pair]] if pair in self._ids else [self._ids[letter] for letter in pair]
        return ids

    def outside(self, text: str) -> set[str]:
        """The characters of a text that no output spells."""
        return {letter for letter in text if letter not in self._ids}

    def decode(self, ids: Iterable[int]) -> str:
        """The text that outputs spell; blanks spell nothing."""
        return "".join(self.symbols[index] for index in ids)

    def greedy(self, path: Iterable[int]) -> str:
        """The text of a path with one output a frame: repeats are one, blanks none."""
        kept, before = [], -1
        for index in path:
            if index != before:
                kept.append(index)
            before = index
        return self.decode(kept)

    def write(self, folder: Path) -> None:
        """Write alphabet.json."""
        text = json.dumps({"symbols": self.symbols}, ensure_ascii=False)
        (folder / ALPHABET).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Alphabet":
        """The alphabet of a model folder.

        Raises:
            CheckpointError: alphabet.json is missing or is none.
        """
        symbols: Any = read_json(folder / ALPHABET).get("symbols")
        good = isinstance(symbols, list) and len(symbols) > 1 and all(isinstance(symbol, str) for symbol in symbols)
        if not good or symbols[0] != "":
            raise CheckpointError(f'{folder / ALPHABET}: must hold a list of texts "symbols", the first of them empty')
        named = [symbol for symbol in symbols if symbol]
        if len(set(named)) < len(named):
            raise CheckpointError(f"{folder / ALPHABET}: a symbol stands there twice")
        return cls(tuple(symbols))


def build_alphabet(units: str, texts: Iterable[str], size: int) -> Alphabet:
    """The alphabet of so many outputs that suits training texts.

    Args:
        units: "characters" (a-z, apostrophe, space), "bigrams" (these, and the most frequent pairs), or "found" (the
            most frequent characters of the texts).
    Raises:
        ConfigError: there are too few outputs.
    """
    if units == "found":
        counts = Counter(letter for text in texts for letter in text)
        symbols = ("", *_most_frequent(counts, size - 1))
    else:
        if size < len(ENGLISH):
            raise ConfigError(f"model.vocab_size: {size}; letters, apostrophe, space and blank are {len(ENGLISH)}")
        symbols = ENGLISH
        if units == "bigrams":
            words = (word for text in texts for word in text.split(" "))
            pairs = Counter(word[start : start + 2] for word in words for start in range(0, len(word) - 1, 2))
            known = Counter({pair: count for pair, count in pairs.items() if set(pair) <= set(ENGLISH)})
            symbols += tuple(_most_frequent(known, size - len(ENGLISH)))
    return Alphabet(symbols + ("",) * (size - len(symbols)))


def _most_frequent(counts: Counter[str], size: int) -> list[str]:
    chosen = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))[:size]
    return sorted(chosen)


def english(text: str) -> str:
    """Lower case, numbers in words, no punctuation but the apostrophe, single spaces."""
    plain = unicodedata.normalize("NFKD", text.lower().replace("’", "'"))
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain)
    plain = re.sub(r"\d+", lambda number: f" {spelled(number.group())} ", plain)
    plain = re.sub(r"[^\w' ]|_", " ", plain)
    return " ".join(word for word in plain.split() if word.strip("'"))


def spelled(digits: str) -> str:
    """A whole number in words; digit by digit where it begins with 0 or is beyond billions."""
    if (digits[0] == "0" and len(digits) > 1) or len(digits) > 12:
        return " ".join(_ONES[int(digit)] for digit in digits)
    return _words(int(digits))


def _words(number: int) -> str:
    if number < 20:
        return _ONES[number]
    for power, name in _POWERS:
        if number >= power:
            more, rest = divmod(number, power)
            return f"{_words(more)} {name}" + (f" {_words(rest)}" if rest else "")
    tens, ones = divmod(number, 10)
    return _TENS[tens] + (f" {_ONES[ones]}" if ones else "")


def listed(letters: Iterable[str]) -> str:
    """Characters for an error, at most so many."""
    ordered = sorted(letters)
    more = f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
    return ", ".join(repr(letter) for letter in ordered[:_NAMED]) + more
