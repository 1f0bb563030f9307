"""A language model as a user keeps it: an ARPA file, and beside it, in FILE.json, its unit and its weights.

`seqloom lm build` writes both, `seqloom lm tune` sets the weights; without the second file a model counts words where
the recogniser writes spaces, else characters, with weights of 1.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seqloom.core.checkpoint.json_file import read_json
from seqloom.core.errors import ConfigError, DataError
from seqloom.systems.deep_speech2.arpa import read_arpa
from seqloom.systems.deep_speech2.ngram import Unit, tokens
from seqloom.systems.deep_speech2.prior import LanguageModel, Weights


def settings_path(path: Path) -> Path:
    """Where the settings of a language model lie."""
    return path.with_name(f"{path.name}.json")


def read_language_model(
    path: Path, symbols: Iterable[str], alpha: float | None = None, beta: float | None = None
) -> LanguageModel:
    """A language model for a recogniser of these symbols.

    Args:
        alpha, beta: in place of the tuned weights.
    Raises:
        DataError: the file is none.
        ConfigError: its settings are none, or it counts words and the recogniser writes no spaces.
    """
    settings = read_settings(path)
    spaced = " " in symbols
    unit = settings.get("unit", "word" if spaced else "character")
    if unit == "word" and not spaced:
        raise ConfigError(f"{path}: counts words, but this recogniser writes none; use a model of characters")
    weights = Weights(
        alpha=settings.get("alpha", 1.0) if alpha is None else alpha,
        beta=settings.get("beta", 1.0) if beta is None else beta,
    )
    if weights.alpha < 0:
        raise ConfigError(f"--alpha: {alpha} is not allowed; it must be 0 or more")
    return LanguageModel(read_arpa(path), unit, weights)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings beside a language model; none if there is no such file.

    Raises:
        ConfigError: they are not what `write_settings` writes.
    """
    place = settings_path(path)
    if not place.exists():
        return {}
    settings = read_json(place)
    numbers = (settings.get("alpha", 1.0), settings.get("beta", 1.0))
    if settings.get("unit", "word") not in ("word", "character") or not all(
        isinstance(number, int | float) and not isinstance(number, bool) for number in numbers
    ):
        raise ConfigError(f'{place}: "unit" must be word or character, "alpha" and "beta" numbers')
    return settings


def write_settings(path: Path, unit: Unit, weights: Weights, **facts: Any) -> None:
    """Write the settings of a language model, with what else is worth knowing of them.

    Raises:
        DataError: the file cannot be written.
    """
    text = json.dumps({"unit": unit, **asdict(weights), **facts}, indent=2, ensure_ascii=False)
    try:
        settings_path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{settings_path(path)}: cannot be written: {error.strerror}") from error


def read_sentences(paths: Iterable[Path], unit: Unit, text: str = "english") -> Iterator[list[str]]:
    """The lines of text files, each a sentence of words (or characters).

    Args:
        text: "english" in lower case, with spelled numbers and without punctuation; "as_it_is" unchanged.
    Raises:
        DataError: a file cannot be read.
    """
    from seqloom.systems.deep_speech2.alphabet import english

    for path in paths:
        try:
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    if found := tokens(english(line) if text == "english" else line, unit):
                        yield found
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as text: {error}") from error
