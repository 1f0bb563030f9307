"""Log-probabilities as a sure recogniser gives them, a recogniser that has learned nothing, and recordings for it."""

import math
import wave
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.data.audio import RATE
from seqloom.systems.deep_speech2.alphabet import ENGLISH, Alphabet
from seqloom.systems.deep_speech2.config import ConvConfig, DeepSpeech2Config, FeatureConfig, RecurrentConfig


def spoken(text: str, symbols: tuple[str, ...] = ENGLISH, each: int = 3, sure: float = 0.9) -> Float[Tensor, "T V"]:
    """Each symbol of a text for two frames, then blanks until `each` frames are over."""
    labels = Alphabet(symbols).encode(text)
    rest = math.log((1 - sure) / (len(symbols) - 1))
    log_probs = torch.full((each * len(labels), len(symbols)), rest)
    for place, label in enumerate(labels):
        log_probs[each * place : each * place + 2, label] = math.log(sure)
        log_probs[each * place + 2 : each * (place + 1), 0] = math.log(sure)
    return log_probs


def untrained(folder: Path, symbols: tuple[str, ...] = ENGLISH) -> Path:
    """A model folder with random weights."""
    torch.manual_seed(0)
    config = DeepSpeech2Config(
        vocab_size=len(symbols),
        features=FeatureConfig(bins=16),
        conv=(ConvConfig(channels=2, kernel=(5, 5), stride=(2, 2)),),
        recurrent=RecurrentConfig(kind="rnn", layers=1, width=16),
        norm="none",
    )
    model = config.build()
    model.alphabet = Alphabet(symbols)
    with torch.no_grad():  # what it says changes with what it hears
        logits, _ = model(torch.randn(1, 16, 200, generator=torch.Generator().manual_seed(0)) - 12, torch.tensor([200]))
        model.head.bias.sub_(logits.mean((0, 1)))
        sharpness = 4 / float(logits.std(1).mean())
        model.head.weight.mul_(sharpness)
        model.head.bias.mul_(sharpness)
    folder.mkdir(parents=True)
    model.write_folder(folder)
    return folder


def record(path: Path, seconds: float, seed: int = 0, quiet: tuple[float, float] = (0.0, 0.0)) -> Path:
    """A wav of noise that rises and falls, silent in the seconds `quiet`."""
    draw = np.random.default_rng(seed)
    times = np.arange(round(seconds * RATE)) / RATE
    samples = draw.normal(0, 0.1, len(times)) * (1 + np.sin(7 * times)) / 2
    samples[(times >= quiet[0]) & (times < quiet[1])] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.clip(samples * 32767, -32768, 32767).astype("<i2").tobytes())
    return path
