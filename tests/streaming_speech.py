"""Small recognisers that hear the past only and, though they have learned nothing, say a lot; and sound for them."""

import torch

from seqloom.systems.deep_speech2.alphabet import ENGLISH, Alphabet
from seqloom.systems.deep_speech2.config import ConvConfig, DeepSpeech2Config, FeatureConfig, RecurrentConfig
from seqloom.systems.deep_speech2.greedy import Greedy
from seqloom.systems.deep_speech2.stream import Listener, StreamingModel

SMALL = DeepSpeech2Config(
    features=FeatureConfig(bins=16, normalisation="adaptive", power_normalisation=False),
    conv=(ConvConfig(channels=3, kernel=(5, 5), stride=(2, 2)), ConvConfig(channels=4, kernel=(3, 3), stride=(2, 1))),
    recurrent=RecurrentConfig(kind="gru", layers=2, width=12, directions="forward"),
    row_context=3,
)


def excited(config=SMALL):
    """A model whose running statistics and outputs are far from those of a fresh one."""
    torch.manual_seed(0)
    model = config.build()
    model.alphabet = Alphabet(ENGLISH)
    model.normaliser.learn(torch.full((config.features.bins,), -12.0), torch.full((config.features.bins,), 3.0))
    with torch.no_grad():
        model(torch.randn(2, config.features.bins, 60) - 12, torch.tensor([60, 40]))
        model.head.weight.mul_(25)
    return model.eval()


def sound(seconds, seed=0):
    """Noise that rises and falls."""
    count = round(seconds * 16000)
    loudness = torch.sin(torch.arange(count) / 900).abs() * 0.2
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * loudness


def listener(model: StreamingModel, rules=None):
    return Listener(Greedy(model.symbols), model, rules)
