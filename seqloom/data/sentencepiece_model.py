"""A sentencepiece .model file as a tokenizer.json.

The file is a protocol buffer: a list of pieces (spelling, score, kind) and the settings of trainer and normaliser. Both
of its algorithms, unigram and BPE, exist in `tokenizers`, so the result needs no further package at run time. The
conversion is accepted only if sentencepiece itself gives the same ids (or, where two readings of a text
are equally likely, as good ones) for texts made of the whole vocabulary.
Field numbers: sentencepiece_model.proto of the sentencepiece project.
"""

import re
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from seqloom.core.errors import DataError
from seqloom.core.extras import require

UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
PROBES = (
    "Hello world, 12345.67!",
    "  two  spaces ",
    "line\n\n\tindented",
    "naïve – 東京 🙂 Ωμέγα",
    "x",
    "",
    "a\u00a0b e\u0301",
)
PIECES_PER_PROBE = 20


class SentencePiece(NamedTuple):
    """An entry of the vocabulary."""

    text: str
    score: float
    kind: int


def convert(path: Path) -> tuple[str, dict[str, Any]]:
    """Read a .model file.

    Returns:
        the content of an equal tokenizer.json, and the ids of `bos`, `eos` and `pad` (None where there is none).
    Raises:
        DataError: the file is damaged, has no end-of-document token, or cannot be converted exactly.
        ConfigError: the package sentencepiece is not installed.
    """
    processor_class = require("data", "sentencepiece").SentencePieceProcessor
    try:
        data = path.read_bytes()
        processor = processor_class(model_proto=data)
        model = _fields(data)
        pieces = [_piece(_fields(item)) for item in model[1]]
        inner = _tokenizer(pieces, _fields(model[2][0]), _fields(model[3][0]))
        _check_equal(inner, processor, pieces)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # the packages raise their own, a damaged file any
        raise DataError(f"{path}: not a sentencepiece model that can be read: {error}") from None
    if processor.eos_id() < 0:
        raise DataError(f"{path}: has no token that ends a document (eos)")
    ids = {"bos": processor.bos_id(), "eos": processor.eos_id(), "pad": processor.pad_id()}
    return inner.to_str(), {role: index if index >= 0 else None for role, index in ids.items()}


def _tokenizer(
    pieces: list[SentencePiece], trainer: dict[int, list[Any]], normalizer: dict[int, list[Any]]
) -> Tokenizer:
    kind = trainer.get(3, [UNIGRAM])[0]
    byte_fallback = any(piece.kind == BYTE for piece in pieces)
    unknown = next(index for index, piece in enumerate(pieces) if piece.kind == UNKNOWN)
    if kind == UNIGRAM:
        vocabulary = [(piece.text, piece.score) for piece in pieces]
        inner = Tokenizer(models.Unigram(vocabulary, unknown, byte_fallback))
        inner.pre_tokenizer = pre_tokenizers.Split(Regex(_start_of_marks(pieces)), "isolated")
    elif kind == BPE:
        ids = {piece.text: index for index, piece in enumerate(pieces)}
        name = pieces[unknown].text
        inner = Tokenizer(models.BPE(ids, _merges(pieces), unk_token=name, fuse_unk=True, byte_fallback=byte_fallback))
    else:
        raise DataError("a word or character model; only unigram and BPE models can be used")
    prefix = bool(normalizer.get(3, [1])[0])
    inner.normalizer = _normalizer(normalizer.get(2, [b""])[0], prefix, squeeze=bool(normalizer.get(4, [1])[0]))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    inner.add_special_tokens(
        [AddedToken(piece.text, normalized=False) for piece in pieces if piece.kind in (UNKNOWN, CONTROL)]
    )
    inner.add_tokens([AddedToken(piece.text, normalized=False) for piece in pieces if piece.kind == USER_DEFINED])
    return inner


def _normalizer(character_map: bytes, prefix: bool, squeeze: bool) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(character_map)] if character_map else []
    if squeeze:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if prefix:
        steps.append(normalizers.Prepend("▁"))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])


def _start_of_marks(pieces: list[SentencePiece]) -> str:
    """Where a text spells out a mark: cutting there keeps unigram, which matches any piece, from taking it as one."""
    marks = {piece.text for piece in pieces if piece.kind not in (NORMAL, USER_DEFINED, BYTE)}
    spelled = [f"{re.escape(mark[0])}(?={re.escape(mark[1:])})" for mark in sorted(marks)]
    return "|".join([*spelled, "<(?=0x[0-9A-F]{2}>)"])


def _merges(pieces: list[SentencePiece]) -> list[tuple[str, str]]:
    """All pairs of pieces that make up a third, the best-scored result first."""
    known = {piece.text: index for index, piece in enumerate(pieces) if piece.kind == NORMAL}
    pairs: defaultdict[float, list[tuple[int, int, str, str]]] = defaultdict(list)
    for text, index in known.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in known and right in known:
                pairs[-pieces[index].score].append((known[left], known[right], left, right))
    return [(left, right) for score in sorted(pairs) for _, _, left, right in sorted(pairs[score])]


def _check_equal(inner: Tokenizer, processor: Any, pieces: list[SentencePiece]) -> None:
    texts = [piece.text.replace("▁", " ") for piece in pieces if piece.kind == NORMAL]
    groups = ["".join(texts[start : start + PIECES_PER_PROBE]) for start in range(0, len(texts), PIECES_PER_PROBE)]
    for probe in [*PROBES, *groups]:
        theirs, ours = processor.encode(probe), inner.encode(probe, add_special_tokens=False).ids
        if theirs != ours and not _tied(inner, theirs, ours, pieces):
            raise DataError(
                f"cannot be converted exactly: {probe[:60]!r} is {theirs[:8]} in sentencepiece and {ours[:8]} "
                "after conversion; give a tokenizer.json of this model instead"
            )


def _tied(inner: Tokenizer, theirs: list[int], ours: list[int], pieces: list[SentencePiece]) -> bool:
    """Whether two unigram readings of a text are equally likely, so that rounding decides between them."""
    scores = [sum(pieces[index].score for index in ids) for ids in (theirs, ours)]
    return isinstance(inner.model, models.Unigram) and len(theirs) == len(ours) and abs(scores[0] - scores[1]) < 1e-3


def _piece(fields: dict[int, list[Any]]) -> SentencePiece:
    return SentencePiece(
        fields[1][0].decode(), struct.unpack("<f", fields.get(2, [bytes(4)])[0])[0], fields.get(3, [NORMAL])[0]
    )


def _fields(data: bytes) -> dict[int, list[Any]]:
    """The fields of a protocol-buffer message by number: integers as int, everything else as bytes."""
    fields: defaultdict[int, list[Any]] = defaultdict(list)
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                value, at = _varint(data, at)
                fields[tag >> 3].append(value)
                continue
            case 1:
                size = 8
            case 5:
                size = 4
            case _:
                size, at = _varint(data, at)
        fields[tag >> 3].append(data[at : at + size])
        at += size
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
