"""N-gram models as ARPA files, which SRILM, KenLM and others read and write; a name ending in .gz is compressed.

    \\data\\            how many n-grams of each length
    \\1-grams:         one line each:  log10 p <tab> words <tab> log10 backoff (which may be missing)
    \\end\\
"""

import contextlib
import gzip
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from seqloom.core.errors import DataError
from seqloom.systems.deep_speech2.ngram import BEGIN, END, LN10, NEVER, ROOT, UNKNOWN, Ints, NgramModel, find, links

_UNHEARD = -100 * LN10
"""ln p of an unknown word for models that list none, as in KenLM."""


def write_arpa(path: Path, model: NgramModel) -> None:
    """Write a model; the same model gives the same bytes.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        with contextlib.ExitStack() as stack:
            file: Any = stack.enter_context(path.open("wb"))
            if path.suffix == ".gz":  # whose header tells nothing of the name and time of writing
                file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
            file.writelines(line.encode() for line in _lines(model))
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error


def _lines(model: NgramModel) -> Iterator[str]:
    texts = [""]
    depth = np.zeros(len(model.word), dtype=np.int64)
    for node in range(1, len(model.word)):
        parent = int(model.parent[node])
        depth[node] = depth[parent] + 1
        word = model.words[model.word[node]]
        texts.append(f"{texts[parent]} {word}" if parent else word)
    log_prob, backoff = model.log_prob / np.float32(LN10), model.backoff / np.float32(LN10)
    yield "\\data\\\n"
    for length in range(1, model.order + 1):
        yield f"ngram {length}={np.count_nonzero(depth == length)}\n"
    for length in range(1, model.order + 1):
        yield f"\n\\{length}-grams:\n"
        for node in np.flatnonzero(depth == length).tolist():
            tail = f"\t{backoff[node]:.7g}" if length < model.order else ""
            yield f"{log_prob[node]:.7g}\t{texts[node]}{tail}\n"
    yield "\n\\end\\\n"


def read_arpa(path: Path) -> NgramModel:
    """Read a model. An unknown word that the file does not list is as good as impossible.

    Raises:
        DataError: the file is missing, not of this form, or lists an n-gram whose first words it does not list; the
            line is named.
    """
    try:
        opened: Any = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as file:
            return _read(path, enumerate(file, 1))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as an ARPA language model: {error}") from error


def _read(path: Path, lines: Iterator[tuple[int, str]]) -> NgramModel:
    sizes = _sizes(path, lines)
    numbers: dict[str, int] = {}
    parents, words, log_probs, backoffs = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)], [np.zeros(1)], [np.zeros(1)]
    keys: Ints = np.zeros(0, dtype=np.int64)
    for length, size in enumerate(sizes, 1):
        rows, log_prob, backoff = _section(path, lines, length, size, numbers)
        if length == 1:
            rows, log_prob, backoff = _with_marks(path, numbers, rows, log_prob, backoff)
        parent = np.full(len(rows), ROOT)
        for column in rows[:, :-1].T:
            parent = find(keys, np.where(parent < 0, -1, parent * len(numbers) + column))
        if (parent < 0).any():
            names = list(numbers)
            lost = " ".join(names[number] for number in rows[int(np.argmax(parent < 0))])
            raise DataError(f"{path}: lists '{lost}' but not the n-gram of its first {length - 1} words")
        own = parent * len(numbers) + rows[:, -1]
        ordered = np.argsort(own, kind="stable")
        own = own[ordered]
        if (own[1:] == own[:-1]).any():
            twice = rows[ordered[int(np.argmax(own[1:] == own[:-1]))]]
            raise DataError(f"{path}: lists '{' '.join(list(numbers)[number] for number in twice)}' twice")
        keys = np.concatenate((keys, own))
        parents.append(parent[ordered])
        words.append(rows[ordered, -1])
        log_probs.append(log_prob[ordered])
        backoffs.append(backoff[ordered])
    if (line := next(_filled(lines), (0, ""))[1]) != "\\end\\":
        raise DataError(f"{path}: ends without \\end\\ after the {len(sizes)}-grams (found '{line[:40]}')")
    parent, word = np.concatenate(parents), np.concatenate(words)
    return NgramModel(
        len(sizes),
        tuple(numbers),
        parent,
        word,
        (np.concatenate(log_probs) * LN10).astype(np.float32),
        (np.concatenate(backoffs) * LN10).astype(np.float32),
        links(len(sizes), len(numbers), parent, word),
    )


def _filled(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    return ((at, text) for at, line in lines if (text := line.strip()))


def _sizes(path: Path, lines: Iterator[tuple[int, str]]) -> list[int]:
    if next(_filled(lines), (0, ""))[1] != "\\data\\":
        raise DataError(f"{path}: not an ARPA language model; the first line must be \\data\\")
    sizes: list[int] = []
    for at, line in lines:
        if not (text := line.strip()):
            if sizes:
                return sizes
            continue
        name, _, count = text.partition("=")
        if name.split() != ["ngram", str(len(sizes) + 1)] or not count.strip().isdigit():
            raise DataError(f"{path}, line {at}: expected 'ngram {len(sizes) + 1}=COUNT', found '{text[:40]}'")
        sizes.append(int(count))
    raise DataError(f"{path}: ends before the n-grams")


def _section(
    path: Path, lines: Iterator[tuple[int, str]], length: int, size: int, numbers: dict[str, int]
) -> tuple[Ints, np.ndarray, np.ndarray]:
    """Word numbers [size, length], log10 p and log10 backoff; unigrams number the words."""
    at, title = next(_filled(lines), (0, ""))
    if title != f"\\{length}-grams:":
        raise DataError(f"{path}, line {at}: expected '\\{length}-grams:', found '{title[:40]}'")
    rows, log_prob, backoff = list[list[int]](), list[float](), list[float]()
    for _ in range(size):
        at, line = next(lines, (at, ""))
        parts = line.split()
        try:
            words = parts[1 : length + 1]
            log_prob.append(float(parts[0]))
            backoff.append(float(parts[length + 1]) if len(parts) > length + 1 else 0.0)
            if not (len(words) == length and len(parts) <= length + 2 and isfinite(log_prob[-1] + backoff[-1])):
                raise ValueError
        except (ValueError, IndexError):
            raise DataError(
                f"{path}, line {at}: expected log10 p, {length} words and perhaps log10 backoff; "
                f"found '{line.strip()[:60]}'"
            ) from None
        if "<UNK>" in words:
            words = [UNKNOWN if word == "<UNK>" else word for word in words]
        if length == 1:
            numbers.setdefault(words[0], len(numbers))
        try:
            rows.append([numbers[word] for word in words])
        except KeyError as error:
            raise DataError(f"{path}, line {at}: '{error.args[0]}' is not among the 1-grams") from None
    return np.array(rows, dtype=np.int64).reshape(size, length), np.array(log_prob), np.array(backoff)


def _with_marks(
    path: Path, numbers: dict[str, int], rows: Ints, log_prob: np.ndarray, backoff: np.ndarray
) -> tuple[Ints, np.ndarray, np.ndarray]:
    """The unigrams, and among them the unknown word."""
    if missing := [mark for mark in (BEGIN, END) if mark not in numbers]:
        raise DataError(f"{path}: {' and '.join(missing)} must be among the 1-grams")
    if UNKNOWN not in numbers:
        rows = np.concatenate((rows, [[numbers.setdefault(UNKNOWN, len(numbers))]]))
        log_prob, backoff = np.append(log_prob, _UNHEARD / LN10), np.append(backoff, 0.0)
    log_prob[numbers[BEGIN]] = NEVER / LN10
    return rows, log_prob, backoff
