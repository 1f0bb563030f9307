"""From recordings to transcripts: cut at silences, heard by the model, decoded, timed.

    for name, transcript in transcribe("runs/an4", ["talk.flac"]): ...

Recordings of any length go through in pieces of at most half a minute, so memory is bounded; pieces of like length
share a batch, across files. A recording that cannot be read is reported in its place, and the others go on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.core.devices import pick_device
from seqloom.core.errors import ConfigError, DataError
from seqloom.core.rooms import load
from seqloom.data.audio import RATE, Samples, is_silent, stream_audio
from seqloom.systems.deep_speech2.align import align
from seqloom.systems.deep_speech2.alphabet import ENGLISH, Alphabet, english
from seqloom.systems.deep_speech2.beam_search import BeamConfig, Decoder
from seqloom.systems.deep_speech2.evaluate import stack
from seqloom.systems.deep_speech2.features import HOP, HOP_SECONDS, utterance_features
from seqloom.systems.deep_speech2.language_model import read_language_model
from seqloom.systems.deep_speech2.lexicon import read_words
from seqloom.systems.deep_speech2.model import DeepSpeech2
from seqloom.systems.deep_speech2.prior import Prior, prior
from seqloom.systems.deep_speech2.segment import Piece, pieces
from seqloom.systems.deep_speech2.transcript import Segment, Transcript, Word, segment, timed

BATCH_PIECES = 8
WAITING_PIECES = 32
"""Pieces among which those of like length are put together; 60 MB."""

_BLANK_SURE = -30.0


class Recogniser:
    """A trained model, ready to hear recordings.

    Args:
        folder: a run or model folder of deep_speech2.
        device: as in `core.devices.pick_device`.
    Raises:
        ConfigError: the folder holds another kind of model.
        CheckpointError: it cannot be read.
    """

    def __init__(self, folder: str | Path, device: torch.device | None = None) -> None:
        model = load(folder)
        if not isinstance(model, DeepSpeech2):
            raise ConfigError(f"{folder}: a {type(model).__name__}, not a speech recogniser (deep_speech2)")
        assert model.alphabet is not None
        self.model = model.to(device or pick_device("auto"))
        self.alphabet: Alphabet = model.alphabet
        self.frame_seconds = HOP_SECONDS * model.config.time_stride
        self.unit = HOP * model.config.time_stride
        """Samples from one output to the next."""

    def prior(
        self,
        lm: Path | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        lexicon: Path | None = None,
        hotwords: Mapping[str, float] | None = None,
    ) -> Prior:
        """What the decoder is to know of text.

        Raises:
            ConfigError, DataError: a file cannot be used with this recogniser's alphabet.
        """
        if lm is None and (alpha is not None or beta is not None):
            raise ConfigError(
                f"{'--alpha' if alpha is not None else '--beta'}: weighs a language model; name one (--lm)"
            )
        model = None if lm is None else read_language_model(lm, self.alphabet.symbols, alpha, beta)
        words = None if lexicon is None else read_words(lexicon)
        return prior(self.alphabet.symbols, model, words, hotwords)

    @torch.inference_mode()
    def log_probs(self, batch: Sequence[Samples]) -> list[Float[Tensor, "_ V"]]:
        """Log-probabilities of the alphabet for every output step of each stretch of samples, on the CPU."""
        device = self.model.head.weight.device
        features = [utterance_features(torch.from_numpy(samples), self.model.config.features) for samples in batch]
        padded, lengths = stack(features)
        if not int(lengths.max()):
            return [torch.zeros(0, len(self.alphabet)) for _ in batch]
        logits, steps = self.model(padded.to(device), lengths.to(device))
        found = logits.float().log_softmax(-1).cpu()
        return [row[:count] for row, count in zip(found, steps.tolist(), strict=True)]

    def whole(self, source: Path | BinaryIO) -> Float[Tensor, "T V"]:
        """Log-probabilities of a whole recording, heard in pieces."""
        found = []
        for piece in pieces(stream_audio(source), self.unit):
            (heard,) = self.log_probs([piece.samples])
            silence = heard.new_full(
                (max(0, len(piece.samples) // self.unit - len(heard)), heard.shape[1]), _BLANK_SURE
            )
            silence[:, 0] = 0.0
            found += [heard, silence]
        return torch.cat(found)

    def align(self, source: Path | BinaryIO, text: str) -> list[Word]:
        """When each word of a transcript was said.

        Raises:
            DataError: the recording cannot be read, or the text does not fit it.
        """
        words = english(text) if set("".join(self.alphabet.symbols)) <= set(ENGLISH) | {" "} else text
        if not words.split():
            raise DataError("the text to align has no words")
        said = align(self.whole(source), words, self.alphabet)
        return [timed(word, self.alphabet.symbols, self.frame_seconds) for word in said]


class Failed(NamedTuple):
    """A recording that could not be transcribed, and why."""

    name: str
    error: DataError


class _Waiting(NamedTuple):
    """A piece that is not heard yet: its file, its place there, and when it begins and ends."""

    file: int
    place: int
    samples: Samples
    start: float


def transcribe(
    folder: str | Path | Recogniser,
    paths: Iterable[str | Path],
    *,
    lm: Path | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    beam: BeamConfig | None = None,
    best: int = 1,
    lexicon: Path | None = None,
    hotwords: Mapping[str, float] | None = None,
) -> Iterator[Transcript | Failed]:
    """Transcribe recordings, in their order; each is given as soon as it and those before it are done.

    Args:
        folder: a run or model folder, or the recogniser read from it.
        lm: an ARPA language model; alpha and beta are its weights in place of the tuned ones.
        best: how many texts to give for each segment, the best and alternatives.
        lexicon: a file of the only words that may be.
        hotwords: word -> what is added to its score, in nats.
    Raises:
        ConfigError, DataError, CheckpointError: model, language model or lexicon cannot be used.
    """
    recogniser = folder if isinstance(folder, Recogniser) else Recogniser(folder)
    rules = recogniser.prior(lm, alpha, beta, lexicon, hotwords)
    return transcribe_sources(recogniser, [(str(path), Path(path)) for path in paths], Decoder(rules, beam), best)


def transcribe_sources(
    recogniser: Recogniser, sources: Sequence[tuple[str, Path | BinaryIO]], decoder: Decoder, best: int = 1
) -> Iterator[Transcript | Failed]:
    """Transcribe named recordings, in their order."""
    files = [_File(name) for name, _ in sources]
    waiting: list[_Waiting] = []
    given = 0
    for number, (_, source) in enumerate(sources):
        try:
            for piece in pieces(stream_audio(source), recogniser.unit):
                waiting += files[number].heard(number, piece)
                if len(waiting) >= WAITING_PIECES:
                    _hear(recogniser, decoder, best, files, waiting)
        except DataError as error:
            files[number].error = error
        files[number].whole = True
        if len(waiting) >= WAITING_PIECES or number + 1 == len(sources):
            _hear(recogniser, decoder, best, files, waiting)
        while given < len(files) and files[given].whole and not any(piece.file == given for piece in waiting):
            yield files[given].result()
            files[given].segments.clear()
            given += 1


class _File:
    """A recording on its way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples = 0
        self.whole = False
        self.error: DataError | None = None
        self.segments: dict[int, Segment] = {}

    def heard(self, number: int, piece: Piece) -> list[_Waiting]:
        """What of a further piece is to be decoded: nothing if it is silent."""
        self.samples = piece.start + len(piece.samples)
        start = piece.start / RATE
        return [] if is_silent(piece.samples) else [_Waiting(number, piece.start, piece.samples, start)]

    def result(self) -> Transcript | Failed:
        if self.error is not None:
            return Failed(self.name, self.error)
        ordered = tuple(self.segments[place] for place in sorted(self.segments))
        return Transcript(self.name, round(self.samples / RATE, 3), ordered)


def _hear(recogniser: Recogniser, decoder: Decoder, best: int, files: list[_File], waiting: list[_Waiting]) -> None:
    """Decode all waiting pieces, those of like length together."""
    waiting.sort(key=lambda piece: len(piece.samples))
    for first in range(0, len(waiting), BATCH_PIECES):
        batch = waiting[first : first + BATCH_PIECES]
        for piece, log_probs in zip(batch, recogniser.log_probs([one.samples for one in batch]), strict=True):
            decoder.reset()
            decoder.accept(log_probs)
            found = decoder.result(best)
            if found[0].text:
                end = piece.start + len(piece.samples) / RATE
                files[piece.file].segments[piece.place] = segment(
                    log_probs, found, recogniser.alphabet.symbols, recogniser.frame_seconds, piece.start, end
                )
    waiting.clear()
