"""Small recognisers and recordings for the tests of the system."""

import wave
from dataclasses import replace

import numpy as np

from seqloom.data.config import SourceConfig
from seqloom.systems.deep_speech2.config import ConvConfig, FeatureConfig, RecurrentConfig
from seqloom.systems.deep_speech2.recipes import tiny

TEXTS = ("yes", "no", "go", "stop", "help", "zip", "start", "enter")


def narrow(source="synthetic:letters", **model):
    """The recipe `tiny` with narrow layers on a source."""
    run = tiny()
    shapes = {
        "features": FeatureConfig(bins=20),
        "conv": (ConvConfig(channels=3, kernel=(5, 5), stride=(2, 2)),),
        "recurrent": RecurrentConfig(kind="rnn", layers=2, width=12),
    }
    data = replace(run.task.data, sources=(SourceConfig(path=str(source)),))
    train = replace(run.train, steps=3, log_every=1)
    task = replace(run.task, data=data, batch_rows=4, evaluate_rows=4)
    return replace(run, model=replace(run.model, **(shapes | model)), task=task, train=train)


def write_wav(path, samples, rate=16000):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def write_corpus(folder, speakers=4, each=6):
    """A folder with an index: noise of different lengths, and words that nobody hears in it."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows = ["file\ttext\tspeaker"]
    for number in range(speakers * each):
        name = f"{number:02}.wav"
        write_wav(folder / name, draw.normal(0, 0.1, 6000 + 400 * (number * 7 % 13)))
        rows.append(f"{name}\t{TEXTS[number % len(TEXTS)].upper()}\tspeaker_{number % speakers}")
    (folder / "index.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder
