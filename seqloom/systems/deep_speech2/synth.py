"""Speech that is made here, with its words: enough to learn from where no recording is at hand.

    synthetic:letters               a formant synthesizer of our own; needs nothing installed
    synthetic:espeak:SENTENCES.txt  the lines of a text file, spoken by the program espeak-ng

The built-in one has a pair of formants and a duration for every letter, so it speaks a language that is spelled as it
sounds. A voice is a pitch, a rate and a scale of all formants; a sample is the sum of the harmonics of the pitch, each
as loud as the two formants make it:

    x(t) = Σ_k a_k(t) sin(2π k φ(t)),   a_k = Σ_j w / (w + (k f_0 - F_j)²)
"""

import io
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np

from seqloom.core.errors import DataError
from seqloom.core.seeds import derive
from seqloom.data.audio import RATE, Samples, read_audio
from seqloom.systems.deep_speech2.config import LETTERS
from seqloom.systems.deep_speech2.recordings import Listing, Recording

ESPEAK = "synthetic:espeak:"
VERSION = 1
"""Of what is spoken; goes into the key of the cache."""
VOICES, PER_VOICE = 20, 24
WORDS = (
    *("the", "cat", "sat", "on", "a", "mat", "yes", "no", "go", "stop", "start", "help", "erase", "enter", "zip"),
    *("quick", "brown", "fox", "jumps", "over", "lazy", "dog", "pack", "my", "box", "with", "five", "dozen", "jugs"),
    *("vex", "wizard", "blue", "green", "seven", "eight", "nine", "oh", "hundred", "letter", "bigger", "summer"),
)
_BANDWIDTH = 90.0  # Hz
_HARMONICS = 40
_FRAME = 0.005  # seconds between two settings of the synthesizer
_PAUSE = 0.09  # seconds of a space
_EDGE = 0.012  # seconds in which a letter fades in and out, so that double letters are heard as two


def synthetic(source: str) -> Listing:
    """The recordings of a `synthetic:` source.

    Raises:
        DataError: no such synthesizer, no sentences, or espeak-ng is not installed.
    """
    if source == LETTERS:
        return _letters()
    if source.startswith(ESPEAK):
        return _espeak(Path(source.removeprefix(ESPEAK)).expanduser())
    raise DataError(f"{source}: not known; known: {LETTERS}, {ESPEAK}TEXT_FILE")


def _letters() -> Listing:
    recordings = []
    for voice in range(VOICES):
        draw = np.random.default_rng(derive(0, "synthetic", voice))
        for number in range(PER_VOICE):
            text = " ".join(draw.choice(WORDS, draw.integers(1, 4)))
            name = f"voice_{voice:02}-{number:02}"
            recordings.append(Recording(name, text, f"voice_{voice:02}", partial(speak_letters, text, voice)))
    return Listing(recordings, [LETTERS, VERSION], {})


def speak_letters(text: str, voice: int) -> Samples:
    """A text of small letters and spaces as one of the voices says it."""
    draw = np.random.default_rng(derive(0, "voice", voice))
    pitch, rate, throat = draw.uniform(90, 210), draw.uniform(0.85, 1.2), draw.uniform(0.94, 1.06)
    own = np.random.default_rng(derive(0, "utterance", voice, text))
    tracks = [np.zeros((round(own.uniform(0.05, 0.12) / _FRAME), 3))]
    tracks += [_letter(letter, rate * own.uniform(0.92, 1.08), throat) for letter in text]
    tracks.append(np.zeros((round(own.uniform(0.05, 0.12) / _FRAME), 3)))
    frames = np.concatenate(tracks)
    count = round(len(frames) * _FRAME * RATE)
    places, times = np.arange(len(frames)) * _FRAME * RATE, np.arange(count)
    melody = pitch * (1.08 - 0.16 * times / count) * (1 + 0.02 * np.sin(2 * np.pi * times / RATE * own.uniform(3, 6)))
    phase = 2 * np.pi * np.cumsum(melody) / RATE
    sound = own.normal(0, 0.002, count)
    at_frames = np.interp(places, times, melody)
    before, wave, turn = np.zeros(count), np.sin(phase), 2 * np.cos(phase)
    for harmonic in range(1, _HARMONICS + 1):
        frequency = harmonic * at_frames
        peaks = _BANDWIDTH**2 / (_BANDWIDTH**2 + (frequency[:, None] - frames[:, :2]) ** 2)
        loud = frames[:, 2] * peaks.sum(1) * (frequency < 0.45 * RATE)
        sound += np.interp(times, places, loud) * wave
        before, wave = wave, turn * wave - before  # sin (k+1)φ = 2 cos φ sin kφ - sin (k-1)φ
    return (0.1 * sound).astype(np.float32)


def _letter(letter: str, rate: float, throat: float) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """Two formants and a loudness for every frame of a letter."""
    if letter == " ":
        return np.zeros((round(_PAUSE / rate / _FRAME), 3))
    row, column = divmod(ord(letter) - ord("a"), 6)
    seconds = (0.075 + 0.008 * ((ord(letter) * 7) % 6)) / rate
    count = round(seconds / _FRAME)
    middle = (np.arange(count) + 0.5) * _FRAME
    fade = np.minimum(1, np.minimum(middle, count * _FRAME - middle) / _EDGE)
    first, second = 260 * 1.3**row, 1150 * 1.235**column
    return np.stack([np.full(count, first * throat), np.full(count, second * throat), fade], 1)


def _espeak(path: Path) -> Listing:
    program = shutil.which("espeak-ng")
    if program is None:
        raise DataError(f"{ESPEAK}: the program espeak-ng is not installed; {LETTERS} needs none")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    sentences = [line.split("\t")[-1] for line in lines if line]
    if not sentences:
        raise DataError(f"{path}: has no sentences")
    recordings = []
    for number, text in enumerate(sentences):
        voice = number % VOICES
        speak = partial(_speak_espeak, program, text, voice)
        recordings.append(Recording(f"{path.name}:{number + 1}", text, f"espeak_{voice:02}", speak))
    return Listing(recordings, [ESPEAK, VERSION, sentences], {})


def _speak_espeak(program: str, text: str, voice: int) -> Samples:
    """A sentence in one of the voices: eight timbres, with pitches and rates of their own."""
    draw = np.random.default_rng(derive(0, "espeak", voice))
    timbre = (*(f"en+m{number}" for number in range(1, 5)), *(f"en+f{number}" for number in range(1, 5)))[voice % 8]
    pitch, rate = int(draw.integers(25, 76)), int(draw.integers(130, 191))
    command = [program, "-v", timbre, "-p", str(pitch), "-s", str(rate), "--stdout", "--stdin"]
    try:
        wav = subprocess.run(command, input=text.encode(), capture_output=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise DataError(f"espeak-ng cannot say {text[:60]!r}: {error}") from error
    return read_audio(io.BytesIO(wav))
