"""A long recording with aligned words, cut into short clips with their texts: data to train on.

Paper: Deep Speech 2, section 5.1, which makes its training data of long recordings in this way.
"""

import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seqloom.data.audio import RATE, Samples, stream_audio
from seqloom.systems.deep_speech2.recordings import INDEX
from seqloom.systems.deep_speech2.segment import utterances
from seqloom.systems.deep_speech2.transcript import Word


def write_clips(audio: Path, words: Sequence[Word], seconds: float, folder: Path) -> int:
    """Cut at long pauses, write a wav for each utterance and an index.tsv of all; returns how many there are.

    Never more than one clip and one block of the recording is held.

    Args:
        seconds: length of the recording.
        folder: to be made.
    """
    folder.mkdir(parents=True)
    lines = ["file\ttext\tseconds\tconfidence"]
    blocks, waiting, before = stream_audio(audio), np.zeros(0, np.float32), 0  # samples that were let go
    for number, one in enumerate(utterances(words, seconds)):
        start, stop = round(one.start * RATE), round(one.end * RATE)
        while before + len(waiting) < stop and (block := next(blocks, None)) is not None:
            gone = min(max(0, start - before), len(waiting))
            waiting, before = np.concatenate((waiting[gone:], block)), before + gone
        clip = waiting[start - before : stop - before]
        name = f"{audio.stem}-{number:04}.wav"
        _write(folder / name, clip)
        confidence = sum(word.confidence for word in one.words) / len(one.words)
        lines.append(f"{name}\t{one.text}\t{len(clip) / RATE:.3f}\t{confidence:.4f}")
    (folder / INDEX).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines) - 1


def _write(path: Path, samples: Samples) -> None:
    """As 16-bit PCM."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
