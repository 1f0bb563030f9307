"""Recordings as they come: wav, flac, ogg of any rate and number of channels become mono float32 at one rate.

A file is read in blocks, mixed down to the mean of its channels and resampled as a stream, so a recording of many hours
needs no more memory than one block. PCM wav of 8, 16, 24 or 32 bits is read by the standard library; every other kind
by `soundfile` (extra "speech"). Rates are changed by `soxr` where it is installed, else by our own polyphase filter:

    y_n = Σ_k x_k h(n·r - k),   h a sinc cut off at the lower of both rates, under a Kaiser window

with r = rate in / rate out. Both keep what the lower rate can hold and remove what would alias.
"""

import contextlib
import math
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from seqloom.core.errors import DataError
from seqloom.core.extras import require

RATE = 16_000
"""Samples per second that the speech systems hear."""
BLOCK_SECONDS = 10.0
SILENCE = 1e-5
"""Root mean square below which a recording is called silent: -100 dBFS, less than the last bit of 16."""

_ZEROS = 24  # zero crossings of the sinc on each side
_BETA = 9.0  # of the Kaiser window: side lobes below -90 dB
_UNKNOWN_BYTES = 0x7FFFFF00  # a wav that was written to a pipe gives its length as about 2^31 or 2^32
_LEVELS: dict[int, tuple[str, float]] = {1: ("u1", 2.0**7), 2: ("<i2", 2.0**15), 4: ("<i4", 2.0**31)}

Samples = NDArray[np.float32]


class AudioFacts(NamedTuple):
    """What the header of a recording says.

    Attributes:
        samples: per channel, at the file's own rate; None where the header does not tell.
    """

    rate: int
    channels: int
    samples: int | None

    @property
    def seconds(self) -> float | None:
        return None if self.samples is None else self.samples / self.rate


def read_audio(source: Path | BinaryIO, rate: int = RATE) -> Samples:
    """A whole recording as mono samples between -1 and 1.

    Raises:
        DataError: not a recording, cut short, empty, or silent.
        ConfigError: this kind needs the extra "speech", which is absent.
    """
    samples = np.concatenate(list(stream_audio(source, rate)))
    if is_silent(samples):
        raise DataError(f"{_name(source)}: silent; nothing in it is louder than -100 dBFS")
    return samples


def stream_audio(source: Path | BinaryIO, rate: int = RATE, block_seconds: float = BLOCK_SECONDS) -> Iterator[Samples]:
    """The same in blocks, never holding more than one; where they are cut changes no sample.

    Raises:
        DataError: not a recording, cut short (told when its end is reached), or empty.
    """
    with _opened(source) as (facts, blocks):
        change = resampler(facts.rate, rate)
        read = 0
        for block in blocks(max(1, round(facts.rate * block_seconds))):
            read += len(block)
            out = change(block, last=False)
            if len(out):
                yield out
        if facts.samples is not None and read < facts.samples:
            raise DataError(
                f"{_name(source)}: cut short; its header promises {facts.samples:,} samples, {read:,} are there"
            )
        if read == 0:
            raise DataError(f"{_name(source)}: empty; the recording has no samples")
        out = change(np.zeros(0, np.float32), last=True)
        if len(out):
            yield out


def probe_audio(source: Path | BinaryIO) -> AudioFacts:
    """Rate, channels and length of a recording, from its header.

    Raises:
        DataError: not a recording.
    """
    with _opened(source) as (facts, _):
        return facts


def is_silent(samples: Samples) -> bool:
    """Whether samples hold nothing but silence, a constant offset aside."""
    return len(samples) == 0 or float(np.std(samples, dtype=np.float64)) < SILENCE


def resampler(rate_in: int, rate_out: int) -> Any:
    """A stream from one rate to another: `change(block, last) -> block`, to be called in order, once with `last`."""
    if rate_in == rate_out:
        return lambda block, last: block
    try:
        import soxr
    except ImportError:
        return Polyphase(rate_in, rate_out)
    stream = soxr.ResampleStream(rate_in, rate_out, 1, dtype="float32")
    return lambda block, last: stream.resample_chunk(block, last=last)


class Polyphase:
    """Our own resampler: one short filter for each of the places between two input samples where an output may lie."""

    def __init__(self, rate_in: int, rate_out: int) -> None:
        ratio = Fraction(rate_out, rate_in)
        self._up, self._down = ratio.numerator, ratio.denominator
        cutoff = min(1.0, rate_out / rate_in)
        self._half = math.ceil(_ZEROS / cutoff)
        offsets = np.arange(1 - self._half, self._half + 1) - np.arange(self._up)[:, None] / self._up
        window = np.i0(_BETA * np.sqrt(np.maximum(0, 1 - (offsets * cutoff / _ZEROS) ** 2))) / np.i0(_BETA)
        taps = np.sinc(offsets * cutoff) * window * (np.abs(offsets * cutoff) <= _ZEROS)
        self._taps = (taps / taps.sum(1, keepdims=True)).astype(np.float32)
        self._kept = np.zeros(self._half - 1, np.float32)  # inputs still needed; the first one has number `_first`
        self._first = 1 - self._half
        self._next = 0  # number of the next output
        self._read = 0

    def __call__(self, block: Samples, last: bool) -> Samples:
        """The outputs that these further inputs decide; with `last`, all that are left."""
        self._read += len(block)
        after = [np.zeros(self._half, np.float32)] if last else []
        inputs = np.concatenate([self._kept, block, *after])
        known = self._first + len(inputs) - self._half  # inputs before this number have all their neighbours
        if last:
            known = min(known, self._read)
        stop = max(self._next, -(-known * self._up // self._down))
        numbers = np.arange(self._next, stop, dtype=np.int64) * self._down
        places, phases = numbers // self._up, numbers % self._up
        out = np.empty(len(numbers), np.float32)
        if len(numbers):
            windows = sliding_window_view(inputs, 2 * self._half)
            for start in range(0, len(numbers), RATE):
                part = slice(start, start + RATE)
                rows = windows[places[part] - self._half + 1 - self._first]
                out[part] = np.einsum("nk,nk->n", rows, self._taps[phases[part]])
        self._next = stop
        first = max(self._first, stop * self._down // self._up - self._half + 1)
        self._kept, self._first = inputs[first - self._first :], first
        return out


@contextlib.contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[tuple[AudioFacts, Any]]:
    """A recording: what its header says, and `blocks(size)`, which reads mono blocks to its end."""
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
            head = stream.read(12)
            stream.seek(0)
        except OSError as error:
            raise DataError(f"{_name(source)}: cannot be read: {error.strerror}") from error
        if not head:
            raise DataError(f"{_name(source)}: empty; the file has no bytes")
        if head[:4] == b"RIFF" and head[8:12] == b"WAVE" and (opened := _open_wave(stream)) is not None:
            yield opened
            return
        yield _open_soundfile(stack, stream, source)


def _open_wave(stream: BinaryIO) -> tuple[AudioFacts, Any] | None:
    """PCM through the standard library; None for what it does not read."""
    try:
        file = wave.open(stream, "rb")  # noqa: SIM115  # closing it would not close the stream
        width, channels, count = file.getsampwidth(), file.getnchannels(), file.getnframes()
        rate = file.getframerate()
    except (wave.Error, EOFError):
        stream.seek(0)
        return None
    if width not in (1, 2, 3, 4) or rate < 1:
        stream.seek(0)
        return None
    unknown = count * width * channels >= _UNKNOWN_BYTES

    def blocks(size: int) -> Iterator[Samples]:
        while data := file.readframes(size):
            yield _mono(_floats(data[: len(data) // (width * channels) * width * channels], width), channels)

    return AudioFacts(rate, channels, None if unknown else count), blocks


def _floats(data: bytes, width: int) -> Samples:
    if width == 3:  # the three bytes become the upper ones of four
        bytes_of = np.frombuffer(data, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(bytes_of), 4), np.uint8)
        wide[:, 1:] = bytes_of
        return (wide.view("<i4")[:, 0] / np.float32(2.0**31)).astype(np.float32)
    kind, full = _LEVELS[width]
    values = np.frombuffer(data, kind).astype(np.float32)
    return (values - 128.0) / np.float32(full) if width == 1 else values / np.float32(full)


def _open_soundfile(stack: contextlib.ExitStack, stream: BinaryIO, source: Path | BinaryIO) -> tuple[AudioFacts, Any]:
    soundfile = require("speech", "soundfile")
    try:
        file = stack.enter_context(soundfile.SoundFile(stream))
    except soundfile.LibsndfileError as error:
        raise DataError(f"{_name(source)}: not a recording that can be read: {error.error_string}") from error

    def blocks(size: int) -> Iterator[Samples]:
        while True:
            try:
                block = file.read(size, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise DataError(f"{_name(source)}: damaged or cut short: {error.error_string}") from error
            if not len(block):
                return
            yield block.mean(1, dtype=np.float32) if block.shape[1] > 1 else block[:, 0]

    frames = int(file.frames)
    return AudioFacts(int(file.samplerate), int(file.channels), frames if 0 <= frames < 1 << 62 else None), blocks


def _mono(values: Samples, channels: int) -> Samples:
    return values if channels == 1 else values.reshape(-1, channels).mean(1, dtype=np.float32)


def _name(source: Path | BinaryIO) -> str:
    return str(source if isinstance(source, Path) else getattr(source, "name", "recording"))
