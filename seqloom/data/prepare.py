"""From what a user names as data to rows of tokens, in one walk.

Everything slow is done once: a trained tokenizer and the token streams of each source are cached under a digest of all
they depend on, so a second run, or another run on the same data, starts at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from seqloom.core.cache import cached, key
from seqloom.core.checkpoint.manifest import verify, write_manifest
from seqloom.core.errors import ConfigError, DataError
from seqloom.core.progress import Progress
from seqloom.data.config import DataConfig
from seqloom.data.conversation_store import FORMAT as CONVERSATIONS
from seqloom.data.conversation_store import encode_conversations, read_conversations
from seqloom.data.encode import FORMAT, encode, read_store
from seqloom.data.examples import Encoder
from seqloom.data.mixture import InOrder, Mixture
from seqloom.data.report import data_report
from seqloom.data.rows import RowSource, RowStore, Split, StreamRows
from seqloom.data.sources import DOCUMENTS, RECORDS, Source, open_source
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
    kinds = DOCUMENTS if config.form == "documents" else RECORDS
    sources = [open_source(source.path, config.text_field, kinds) for source in config.sources]
    surveys = _surveys(config, sources, vocab_size, tell)
    tokenizer = _tokenizer(config, sources, surveys, vocab_size, tell)
    if config.form == "documents":
        splits = [
            _documents(config, *pair, tokenizer, sequence_length, tell) for pair in zip(sources, surveys, strict=True)
        ]
    else:
        splits = [_conversations(config, source, tokenizer, sequence_length, tell) for source in sources]

    phases = _phases(config, rows_total)
    mixture = Mixture([len(split.train) for split in splits], phases, seed)
    _check_repeats(config, mixture, rows_total)
    train = RowSource([split.train for split in splits], mixture, sequence_length, tokenizer.pad)
    valid = _in_order([split.valid for split in splits], sequence_length, tokenizer.pad)
    every = _in_order([side for split in splits for side in (split.train, split.valid)], sequence_length, tokenizer.pad)

    streams = [[split.train.digest, split.valid.digest] for split in splits]
    return Prepared(
        tokenizer=tokenizer,
        train=train,
        valid=valid,
        every=every,
        report=data_report(config.form, sources, splits, tokenizer, mixture, rows_total, sequence_length, train),
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
    if config.form == "conversations":
        raise ConfigError(
            "task.data.tokenizer: conversations need the tokenizer of the model they are to teach, with its chat "
            "template, not a new one; name its folder"
        )

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


def _documents(
    config: DataConfig,
    source: Source,
    source_survey: Callable[[], Survey],
    tokenizer: TextTokenizer,
    length: int,
    progress: Progress,
) -> Split:
    def make(folder: Path) -> None:
        encode(source, source_survey(), tokenizer, config.valid_fraction, folder, progress)

    name = key(FORMAT, source.fingerprint, tokenizer.digest, config.valid_fraction, config.bad_line_limit)
    store = cached("tokens", name, read_store, make, progress)
    return Split(StreamRows(store.train, length), StreamRows(store.valid, length), store.facts)


def _conversations(
    config: DataConfig, source: Source, tokenizer: TextTokenizer, length: int, progress: Progress
) -> Split:
    def make(folder: Path) -> None:
        encoder = Encoder(tokenizer, config.template_options, length)
        encode_conversations(source, encoder, config.valid_fraction, config.bad_line_limit, folder, progress)

    rendering = [tokenizer.digest, sorted(tokenizer.templates.items()), sorted(config.template_options.items())]
    name = key(CONVERSATIONS, source.fingerprint, rendering, length, config.valid_fraction, config.bad_line_limit)
    return cached("conversations", name, read_conversations, make, progress)


def _in_order(stores: list[RowStore], length: int, pad: int) -> RowSource:
    return RowSource(stores, InOrder([len(store) for store in stores]), length, pad)


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
