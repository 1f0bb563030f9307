"""What the recogniser hears: log-spectrograms of 20 ms windows every 10 ms, normalised per frequency bin.

    p_tk = |FFT(w ∘ x_t)_k|² / (f_s Σ w²), twice that for 0 < k < 160        161 bins of 50 Hz
    features = ln(p + 1e-14)                                                   frames = 1 + ⌊(n - 320) / 160⌋

Fewer bins are triangles over p, one FFT bin apart at low frequencies and, higher up, as far apart as the ear's mel
scale asks. Normalisation by bin: `global` with the mean and deviation of the training set, `utterance` with those of
the utterance itself, and `adaptive` for audio still to come, whose statistics begin as those of the training set:

    m_t = (n0 m_train + Σ_{i<=t} x_i) / (n0 + t),  the same for x²,  n0 = 300 frames

Deep Speech 2, section 3 (log-spectrograms, power-normalised clips) and section 7 (adaptive normalisation in serving;
the paper gives no formula, the one above is ours).
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from seqloom.data.audio import RATE
from seqloom.systems.deep_speech2.config import FeatureConfig, Normalisation

WINDOW, HOP, FFT_BINS = 320, 160, 161
HOP_SECONDS = HOP / RATE
FLOOR = 1e-14
LEVEL = 0.1
"""Root mean square of a power-normalised clip: -20 dBFS."""
PRIOR_FRAMES = 300
"""n0 of the adaptive normalisation: three seconds of speech weigh as much as the training set."""
LEAST_DEVIATION = 1e-2  # of a bin; below this a bin says nothing and is not to be blown up


def frame_count(samples: int) -> int:
    """Whole windows in so many samples; an unfinished last one is dropped."""
    return max(0, 1 + (samples - WINDOW) // HOP)


def normalise_power(samples: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """The clip at -20 dBFS; silence stays silence."""
    level = float(samples.square().mean().sqrt())
    return samples * (LEVEL / level) if level > 0 else samples


def log_spectrogram(samples: Float[Tensor, "N"], bins: int = FFT_BINS) -> Float[Tensor, "M T"]:
    """Log power of every whole window, without centring or padding; bins × frames."""
    if frame_count(len(samples)) == 0:
        return samples.new_zeros(bins, 0)
    window, scale = _window(samples.device)
    power = torch.fft.rfft(samples.unfold(0, WINDOW, HOP) * window).abs().square() / scale
    power[:, 1:-1] *= 2
    if bins != FFT_BINS:
        power = power @ bands(bins).to(samples.device)
    return (power + FLOOR).log().T.contiguous()


def utterance_features(samples: Float[Tensor, "N"], config: FeatureConfig) -> Float[Tensor, "M T"]:
    """What the model takes of a whole utterance: its log-spectrogram, not yet normalised by bin."""
    return log_spectrogram(normalise_power(samples) if config.power_normalisation else samples, config.bins)


@lru_cache
def _window(device: torch.device) -> tuple[Float[Tensor, "320"], float]:
    window = torch.hann_window(WINDOW, periodic=False, dtype=torch.float64)
    return window.float().to(device), float(window.square().sum()) * RATE


@lru_cache
def bands(bins: int) -> Float[Tensor, "161 M"]:
    """Triangles that sum FFT bins to fewer ones: neighbours a step apart that is one bin, or grows like the mel scale.

    The distance at frequency f is max(1, c (1 + f / 700 Hz)) bins, with c chosen so that the last triangle ends at the
    last bin. Each triangle's weights sum to 1.
    """
    assert 1 <= bins < FFT_BINS - 1
    low, high = 0.0, float(FFT_BINS)
    for _ in range(60):
        c = (low + high) / 2
        low, high = (c, high) if _edges(bins, c)[-1] < FFT_BINS - 1 else (low, c)
    edges, place = torch.tensor(_edges(bins, low), dtype=torch.float64), torch.arange(FFT_BINS, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (place[:, None] - left) / (centre - left)
    falling = (right - place[:, None]) / (right - centre)
    weights = torch.minimum(rising, falling).clamp(min=0)
    return (weights / weights.sum(0)).float()


def _edges(bins: int, c: float) -> list[float]:
    edges = [0.0]
    for _ in range(bins + 1):
        edges.append(edges[-1] + max(1.0, c * (1 + edges[-1] * (RATE / WINDOW) / 700)))
    return edges


class Heard(NamedTuple):
    """What the adaptive normalisation remembers of a stream, in FP64.

    Attributes:
        frames: heard so far.
        total, squares: their sums by bin.
    """

    frames: int
    total: Float[Tensor, "B M"]
    squares: Float[Tensor, "B M"]


class Normaliser(nn.Module):
    """Normalisation by frequency bin; the statistics of the training set are stored with the weights."""

    mean: Float[Tensor, "M"]
    deviation: Float[Tensor, "M"]

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        self.kind: Normalisation = config.normalisation
        self.register_buffer("mean", torch.zeros(config.bins))
        self.register_buffer("deviation", torch.ones(config.bins))

    def learn(self, mean: Float[Tensor, "M"], deviation: Float[Tensor, "M"]) -> None:
        """Take over the statistics of a training set."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.clamp(min=LEAST_DEVIATION))

    def forward(self, features: Float[Tensor, "B M T"], lengths: Int[Tensor, "B"]) -> Float[Tensor, "B M T"]:
        """Normalised frames; zero beyond the length of each row."""
        valid = torch.arange(features.shape[2], device=features.device) < lengths[:, None]
        if self.kind == "adaptive":
            normalised, _ = self.continued(features, None)
        elif self.kind == "utterance":
            normalised = _by_utterance(features, valid)
        else:
            normalised = (features - self.mean[:, None]) / self.deviation[:, None]
        return normalised * valid[:, None]

    def continued(self, features: Float[Tensor, "B M T"], heard: Heard | None) -> tuple[Float[Tensor, "B M T"], Heard]:
        """Adaptive normalisation of the next frames of streams; in one piece or in many, the answer is the same.

        Args:
            heard: what an earlier call returned; None at the beginning.
        """
        wide = features.double()
        if heard is None:
            nothing = wide.new_zeros(wide.shape[:2])
            heard = Heard(0, nothing, nothing)
        mean, deviation = self.mean.double(), self.deviation.double()
        totals = torch.cat([heard.total[..., None], wide], 2).cumsum(2)[..., 1:]
        squares = torch.cat([heard.squares[..., None], wide.square()], 2).cumsum(2)[..., 1:]
        count = heard.frames + torch.arange(1, features.shape[2] + 1, device=features.device)
        running = (PRIOR_FRAMES * mean[:, None] + totals) / (PRIOR_FRAMES + count)
        second = (PRIOR_FRAMES * (mean.square() + deviation.square())[:, None] + squares) / (PRIOR_FRAMES + count)
        spread = (second - running.square()).clamp(min=LEAST_DEVIATION**2).sqrt()
        after = heard if features.shape[2] == 0 else Heard(int(count[-1]), totals[..., -1], squares[..., -1])
        return ((wide - running) / spread).float(), after


def _by_utterance(features: Float[Tensor, "B M T"], valid: Bool[Tensor, "B T"]) -> Float[Tensor, "B M T"]:
    count = valid.sum(1).clamp(min=1)[:, None, None]
    centred = (features - (features * valid[:, None]).sum(2, keepdim=True) / count) * valid[:, None]
    deviation = (centred.square().sum(2, keepdim=True) / count).sqrt().clamp(min=LEAST_DEVIATION)
    return centred / deviation


def mean_and_deviation(
    frames: int, total: Float[Tensor, "M"], squares: Float[Tensor, "M"]
) -> tuple[Float[Tensor, "M"], Float[Tensor, "M"]]:
    """Statistics by bin from sums over frames."""
    mean = total / max(1, frames)
    return mean.float(), (squares / max(1, frames) - mean.square()).clamp(min=0).sqrt().float()
