"""Augmentation of training recordings: speed, shift, noise at a drawn ratio to the speech, gain.

    y = g (x' + n · rms(x') / rms(n) · 10^(-SNR/20)),   SNR uniform in decibels, for a share of the utterances

Everything drawn is a pure function of seed, epoch and utterance. Deep Speech 2, section 5.2 (noise is added to 40 % of
the utterances); the range of ratios is ours, the paper gives none.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from seqloom.core.seeds import generator
from seqloom.data.audio import RATE
from seqloom.systems.deep_speech2.config import AugmentConfig
from seqloom.systems.deep_speech2.data import Utterance

BUILT_IN = "built-in"
SPEAKERS = 4
"""Voices in built-in babble."""
_BLOCK = 320  # samples by which a recording grows and shrinks in `change_speed`, so that transforms stay fast


class Augmenter:
    """Makes a training recording sound a little different in each epoch."""

    def __init__(
        self, config: AugmentConfig, seed: int, train: Sequence[Utterance], noise: Sequence[Utterance] = ()
    ) -> None:
        """
        Args:
            train: the training set, whose other utterances make babble.
            noise: recordings of noise, in place of the built-in kinds.
        """
        self._config, self._seed, self._train, self._noise = config, seed, train, noise

    def __call__(self, index: int, epoch: int, fits: Callable[[int], bool]) -> Float[Tensor, "N"]:
        """Utterance `index` of the training set as it sounds in this epoch.

        Args:
            fits: whether so many samples leave enough steps for its transcript; a change of speed that does not is
                not made.
        """
        config, draw = self._config, generator(self._seed, "augment", epoch, index)
        samples = self._train[index].samples()
        noisy, snr, speed, shift, gain, choice = torch.rand(6, generator=draw).tolist()
        if config.speed:
            factor = 1 + config.speed * (2 * speed - 1)
            changed = change_speed(samples, factor)
            samples = changed if fits(len(changed)) else samples
        if config.shift_ms:
            samples = _shifted(samples, round((2 * shift - 1) * config.shift_ms * RATE / 1000))
        if noisy < config.noise_fraction:
            low, high = config.snr_db
            samples = mix(samples, self._draw_noise(len(samples), choice, draw), low + (high - low) * snr)
        if config.gain_db:
            samples = samples * 10 ** ((2 * gain - 1) * config.gain_db / 20)
        return samples

    def _draw_noise(self, count: int, choice: float, draw: torch.Generator) -> Float[Tensor, "N"]:
        if self._noise:
            return _cut(self._noise[int(choice * len(self._noise))].samples(), count, draw)
        if choice < 1 / 3:
            return torch.randn(count, generator=draw)
        if choice < 2 / 3:
            return pink(count, draw)
        voices = torch.randint(len(self._train), (SPEAKERS,), generator=draw).tolist()
        return torch.stack([_level(_cut(self._train[voice].samples(), count, draw)) for voice in voices]).sum(0)


def mix(speech: Float[Tensor, "N"], noise: Float[Tensor, "N"], snr_db: float) -> Float[Tensor, "N"]:
    """Speech with noise so many decibels below it."""
    level = float(speech.square().mean().sqrt())
    return speech + _level(noise) * (level * 10 ** (-snr_db / 20))


def pink(count: int, draw: torch.Generator) -> Float[Tensor, "N"]:
    """Noise with equal power in every octave."""
    spectrum = torch.fft.rfft(torch.randn(count, generator=draw))
    places = torch.arange(len(spectrum)).clamp(min=1)
    return torch.fft.irfft(spectrum / places.sqrt(), n=count)


def change_speed(samples: Float[Tensor, "N"], factor: float) -> Float[Tensor, "n"]:
    """Played so many times as fast, pitch included: its spectrum is cut off or continued with zeros."""
    before = math.ceil(len(samples) / _BLOCK) * _BLOCK
    after = round(before / factor / _BLOCK) * _BLOCK
    if after in (0, before):
        return samples
    spectrum = torch.fft.rfft(torch.nn.functional.pad(samples, (0, before - len(samples))))
    changed = torch.fft.irfft(spectrum, n=after) * (after / before)
    return changed[: round(len(samples) * after / before)]


def _shifted(samples: Float[Tensor, "N"], by: int) -> Float[Tensor, "N"]:
    shifted = torch.zeros_like(samples)
    if by >= 0:
        shifted[by:] = samples[: len(samples) - by]
    else:
        shifted[:by] = samples[-by:]
    return shifted


def _cut(samples: Float[Tensor, "N"], count: int, draw: torch.Generator) -> Float[Tensor, "n"]:
    """A stretch that begins anywhere, repeated if the recording is too short."""
    start = int(torch.randint(len(samples), (), generator=draw))
    return samples.roll(-start).repeat(math.ceil(count / len(samples)))[:count]


def _level(samples: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """At a root mean square of 1."""
    return samples / samples.square().mean().sqrt().clamp(min=1e-8)
