"""From what a user names as data to rows of tokens, in one walk.

Everything slow is done once: a trained tokenizer and the token streams of each source are cached under a digest of all
they depend on, so a second run, or another run on the same data, starts at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from seqloom.core.checkpoint.manifest import verify, write_manifest
from seqloom.core.errors import ConfigError, DataError
from seqloom.core.progress import Progress
from seqloom.data.cache import cached, key
from seqloom.data.config import DataConfig
from seqloom.data.encode import FORMAT, Store, encode, read_store
from seqloom.data.mixture import InOrder, Mixture
from seqloom.data.report import data_report
from seqloom.data.rows import RowSource, row_count
from seqloom.data.shards import TokenStream
from seqloom.data.sources import Source, open_source
from seqloom.data.survey import Survey, survey
from seqloom.data.tokenizer import SPECIALS, WORDS, TextTokenizer, open_tokenizer, train_tokenizer

SAMPLE_BYTES = 64 << 20
SAMPLE_BYTES_PER_ENTRY = 1 << 10
"""Text for a new tokenizer, per entry of its vocabulary; twice as much makes it compress about 1 % better."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Text ready for training."""

    tokenizer: TextTokenizer
    train: RowSource
    """Endless; any position is valid."""
    valid: RowSource
    """Held-back rows in their natural order, each once."""
    every: RowSource
    """All rows, held back or not, each once: for a model that was trained on other text."""
    report: dict[str, Any]
    """What went in, as plain data; `report_lines` makes it readable."""
    fingerprint: str
    """Digest of everything that decides which row stands at which position."""


def prepare(
    config: DataConfig,
    *,
    vocab_size: int,
    sequence_length: int,
    rows_total: int,
    seed: int,
    progress: Progress | None = None,
) -> Prepared:
    """Read, tokenize, split and mix the sources of a config.

    Args:
        vocab_size: size of the model's vocabulary; a new tokenizer gets at most this many entries.
        sequence_length: tokens per row.
        rows_total: training rows the run will draw; places the phases and tells how often text repeats.
        progress: called with a stage in words and the share of it that is done.
    Raises:
        DataError: a source or tokenizer cannot be used, or does not fit the model.
        ConfigError: a source would be repeated more often than allowed, or an optional package is missing.
    """
    tell = progress or (lambda stage, share: None)
    sources = [open_source(source.path, config.text_field) for source in config.sources]
    surveys = _surveys(config, sources, vocab_size, tell)
    tokenizer = _tokenizer(config, sources, surveys, vocab_size, tell)
    stores = [_store(config, *pair, tokenizer, tell) for pair in zip(sources, surveys, strict=True)]

    phases = _phases(config, rows_total)
    mixture = Mixture([row_count(store.train, sequence_length) for store in stores], phases, seed)
    _check_repeats(config, mixture, rows_total)
    train = RowSource([store.train for store in stores], mixture, sequence_length, tokenizer.pad)
    valid = _in_order([store.valid for store in stores], sequence_length, tokenizer.pad)
    every = _in_order([part for store in stores for part in (store.train, store.valid)], sequence_length, tokenizer.pad)

    streams = [[store.train.digest, store.valid.digest] for store in stores]
    return Prepared(
        tokenizer=tokenizer,
        train=train,
        valid=valid,
        every=every,
        report=data_report(sources, stores, tokenizer, mixture, rows_total, train),
        fingerprint=key(tokenizer.digest, streams, phases, sequence_length, seed),
    )


def _surveys(
    config: DataConfig, sources: Sequence[Source], vocab_size: int, progress: Progress
) -> list[Callable[[], Survey]]:
    """The first pass over each source, made when first asked for."""
    room = min(SAMPLE_BYTES, vocab_size * SAMPLE_BYTES_PER_ENTRY) if config.tokenizer == "new" else 0
    total = sum(source.weight for source in config.sources)
    shares = [int(room * source.weight / total) for source in config.sources]
    return [
        cache(partial(survey, source, config.bad_line_limit, share, progress))
        for source, share in zip(sources, shares, strict=True)
    ]


def _tokenizer(
    config: DataConfig,
    sources: Sequence[Source],
    surveys: Sequence[Callable[[], Survey]],
    vocab_size: int,
    progress: Progress,
) -> TextTokenizer:
    if config.tokenizer != "new":
        tokenizer = open_tokenizer(config.tokenizer)
        if tokenizer.size > vocab_size:
            raise DataError(
                f"{config.tokenizer}: this tokenizer has {tokenizer.size} entries, but the model's vocab_size is "
                f"{vocab_size}; raise model.vocab_size to at least {tokenizer.size} or choose another tokenizer"
            )
        return tokenizer

    def make(folder: Path) -> None:
        texts = [text for one in surveys for text in one().sample]
        progress("training the tokenizer", 0.0)
        train_tokenizer(texts, vocab_size).save(folder)
        write_manifest(folder)
        progress("training the tokenizer", 1.0)

    def read(folder: Path) -> TextTokenizer | None:
        return None if verify(folder) else open_tokenizer(folder)

    weights = [source.weight for source in config.sources]
    prints = [source.fingerprint for source in sources]
    name = key(prints, weights, vocab_size, SAMPLE_BYTES_PER_ENTRY, SPECIALS, WORDS)
    return cached("tokenizers", name, read, make, progress)


def _store(
    config: DataConfig,
    source: Source,
    source_survey: Callable[[], Survey],
    tokenizer: TextTokenizer,
    progress: Progress,
) -> Store:
    def make(folder: Path) -> None:
        encode(source, source_survey(), tokenizer, config.valid_fraction, folder, progress)

    name = key(FORMAT, source.fingerprint, tokenizer.digest, config.valid_fraction, config.bad_line_limit)
    return cached("tokens", name, read_store, make, progress)


def _in_order(streams: list[TokenStream], length: int, pad: int) -> RowSource:
    return RowSource(streams, InOrder([row_count(stream, length) for stream in streams]), length, pad)


def _phases(config: DataConfig, rows_total: int) -> list[tuple[int, list[float]]]:
    first = (0, [source.weight for source in config.sources])
    return [first, *((round(phase.start * rows_total), list(phase.weights)) for phase in config.phases)]


def _check_repeats(config: DataConfig, mixture: Mixture, rows_total: int) -> None:
    for source, drawn, rows in zip(config.sources, mixture.drawn(rows_total), mixture.rows, strict=True):
        if config.max_repeats is not None and drawn > config.max_repeats * rows:
            raise ConfigError(
                f"task.data.max_repeats: {source.path} has {rows} rows and would be shown {drawn / rows:.1f} times, "
                f"more than {config.max_repeats:g}; add text, lower its weight, or train for fewer steps"
            )
