"""The recogniser: the whole forward pass, top to bottom.

    x = normalised log-spectrogram
    x = s(B(conv(x)))                    for every convolution, zero beyond each utterance's end
    x = s(B(W x) + U h)                  recurrent layers, one or two directions (or GRUs)
    x = s(rowconv(x))                    where no future is heard
    x = s(B(W x))                        fully connected layers
    logits = W x + b                     over the blank and the characters, for CTC

with s(x) = min(max(x, 0), 20) and B the sequence-wise batch normalization. What lies beyond an utterance's end is zero
before every layer, so no answer depends on how much padding its batch needed. Deep Speech 2, section 3.
"""

from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from seqloom.nn.linear import Linear
from seqloom.nn.recurrent import Recurrent
from seqloom.nn.row_conv import RowConv
from seqloom.nn.sequence_norm import SequenceNorm
from seqloom.systems.deep_speech2.alphabet import Alphabet
from seqloom.systems.deep_speech2.config import ConvConfig, DeepSpeech2Config, Norm
from seqloom.systems.deep_speech2.features import Normaliser


class DeepSpeech2(nn.Module):
    """A speech recogniser; `model(features, lengths)` gives logits and how many of them each utterance has.

    Attributes:
        alphabet: what the outputs stand for; None until a task or a folder tells.
    """

    def __init__(self, config: DeepSpeech2Config) -> None:
        super().__init__()
        self.config = config
        self.alphabet: Alphabet | None = None
        self.normaliser = Normaliser(config.features)
        inputs = [1 if config.convolution == "2d" else config.features.bins, *(layer.channels for layer in config.conv)]
        self.conv = nn.ModuleList(
            Convolution(channels, layer, config.norm, config.clip, config.norm_momentum)
            for channels, layer in zip(inputs, config.conv, strict=False)
        )
        width = config.front_width
        self.recurrent = nn.ModuleList()
        for _ in range(config.recurrent.layers):
            layer = make_recurrent(width, config)
            self.recurrent.append(layer)
            width = layer.out_width
        self.row = None if config.row_context is None else RowConv(width, config.row_context)
        self.connected = nn.ModuleList(
            Connected(before, after, config) for before, after in pairwise([width, *config.connected])
        )
        self.head = Head([width, *config.connected][-1], config.vocab_size)

    def forward(
        self, features: Float[Tensor, "B M T"], lengths: Int[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B S V"], Int[Tensor, "B"]]:
        """FP32 logits of every output step.

        Args:
            features: log-spectrograms as `features.utterance_features` gives them, not yet normalised by bin.
            lengths: frames of each utterance.
        Returns:
            logits, and steps of each utterance; logits of later steps are of no meaning.
        """
        x, lengths = self.front(self.normaliser(features, lengths), lengths)
        valid = steps(lengths, x.shape[1])[..., None]
        for layer in self.recurrent:
            x = layer(x, lengths, valid)
        if self.row is not None:
            x = self.row(x).clamp(0, self.config.clip)
        for layer in self.connected:
            x = layer(x, valid)
        return self.head(x), lengths

    def front(
        self, features: Float[Tensor, "B M T"], lengths: Int[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B S D"], Int[Tensor, "B"]]:
        """The convolutions over normalised frames; channels and frequencies of a step become one vector."""
        x = features[:, None] if self.config.convolution == "2d" else features[:, :, None]
        for layer in self.conv:
            x, lengths = layer(x, lengths)
        return x.flatten(1, 2).transpose(1, 2), lengths

    def write_folder(self, folder: Path) -> None:
        """Write config.json, weights and alphabet."""
        from seqloom.systems.deep_speech2.folder import write_model

        write_model(self, folder)

    def read_folder(self, folder: Path) -> None:
        """Load the weights and the alphabet of a folder written for the same configuration."""
        from seqloom.systems.deep_speech2.folder import read_weights

        read_weights(self, folder)


class Convolution(nn.Module):
    """One convolution over frequency and time with "same" padding, normalised, clipped, zero beyond the end."""

    def __init__(self, in_channels: int, layer: ConvConfig, norm: Norm, clip: float, momentum: float) -> None:
        super().__init__()
        self.clip, self.stride = clip, layer.stride[1]
        padding = (layer.kernel[0] // 2, layer.kernel[1] // 2)
        self.conv = nn.Conv2d(
            in_channels, layer.channels, layer.kernel, layer.stride, padding=padding, bias=norm == "none"
        )
        self.norm = None if norm == "none" else SequenceNorm(layer.channels, axis=1, momentum=momentum)

    def forward(
        self, x: Float[Tensor, "B C M T"], lengths: Int[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B E N S"], Int[Tensor, "B"]]:
        x = self.conv(x)
        lengths = torch.where(lengths > 0, (lengths - 1) // self.stride + 1, 0)
        valid = steps(lengths, x.shape[3])[:, None, None]
        if self.norm is not None:
            x = self.norm(x, valid)
        return x.clamp(0, self.clip) * valid, lengths


class Connected(nn.Module):
    """A fully connected layer: s(B(W x))."""

    def __init__(self, in_width: int, width: int, config: DeepSpeech2Config) -> None:
        super().__init__()
        self.clip = config.clip
        self.linear = Linear(in_width, width)
        self.norm = None if config.norm == "none" else SequenceNorm(width, momentum=config.norm_momentum)
        self.bias = nn.Parameter(torch.zeros(width)) if config.norm == "none" else None
        _uniform(self.linear.weight)

    def forward(self, x: Float[Tensor, "B T D"], valid: Float[Tensor, "B T 1"]) -> Float[Tensor, "B T F"]:
        term = self.linear(x).float()
        term = self.norm(term, valid) if self.norm is not None else term + self.bias
        return term.clamp(0, self.clip) * valid


class Head(nn.Module):
    """Logits, with a bias."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, width))
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        _uniform(self.weight)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T V"]:
        return F.linear(x, self.weight, self.bias)


def make_recurrent(in_width: int, config: DeepSpeech2Config) -> Recurrent:
    """A recurrent layer as the configuration describes it."""
    r = config.recurrent
    return Recurrent(
        in_width, r.width, r.kind, r.directions, r.inputs, config.norm,
        clip=config.clip, candidate=r.candidate, momentum=config.norm_momentum,
    )  # fmt: skip


def steps(lengths: Int[Tensor, "B"], count: int) -> Float[Tensor, "B T"]:
    """1 at the steps of each utterance, 0 beyond."""
    return (torch.arange(count, device=lengths.device) < lengths[:, None]).float()


def _uniform(weight: Float[Tensor, "O I"]) -> None:
    if not weight.is_meta:
        nn.init.uniform_(weight, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)
