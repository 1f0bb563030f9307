"""Spectrograms against scipy's, and normalisation that never looks ahead or at padding."""

import numpy as np
import pytest
import scipy.signal
import torch

from seqloom.systems.deep_speech2.config import FeatureConfig
from seqloom.systems.deep_speech2.features import (
    FFT_BINS,
    Normaliser,
    bands,
    frame_count,
    log_spectrogram,
    normalise_power,
    utterance_features,
)


def noise(count=4000, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("count", [319, 320, 479, 480, 4001])
def test_spectrogram_is_scipys_power_density_and_drops_an_unfinished_window(count):
    samples = noise(count)
    found = log_spectrogram(samples)
    assert found.shape == (FFT_BINS, frame_count(count)) == (FFT_BINS, max(0, (count - 160) // 160))
    if count >= 320:
        window = scipy.signal.windows.hann(320, sym=True)
        _, _, theirs = scipy.signal.spectrogram(
            samples.double().numpy(), 16000, window, noverlap=160, detrend=False, scaling="density"
        )
        np.testing.assert_allclose(found.numpy(), np.log(theirs + 1e-14), atol=1e-3)


@pytest.mark.parametrize("bins", [20, 64, 80, 158])
def test_bands_cover_the_spectrum_and_are_as_fine_as_the_ear(bins):
    weights = bands(bins)
    assert weights.shape == (FFT_BINS, bins)
    torch.testing.assert_close(weights.sum(0), torch.ones(bins))
    assert bool((weights[1:-1].sum(1) > 0).all())
    centres = (weights * torch.arange(FFT_BINS)[:, None]).sum(0).diff()
    assert bool((centres > 0.9).all())
    assert centres[-1] > centres[0] or bins == 158


def test_power_is_that_of_minus_20_decibels():
    assert float(normalise_power(noise() * 3).square().mean().sqrt()) == pytest.approx(0.1, rel=1e-5)
    config = FeatureConfig(bins=40)
    torch.testing.assert_close(utterance_features(noise() * 7, config), utterance_features(noise(), config), atol=1e-4,
                               rtol=1e-4)  # fmt: skip


def normaliser(kind, bins=6):
    made = Normaliser(FeatureConfig(bins=bins, normalisation=kind))
    made.learn(torch.linspace(-3, 3, bins), torch.linspace(0.5, 2, bins))
    return made


@pytest.mark.parametrize("kind", ["global", "utterance", "adaptive"])
def test_padding_is_zero_and_changes_nothing(kind):
    features = torch.randn(2, 6, 50)
    made = normaliser(kind)
    found = made(features, torch.tensor([50, 20]))
    assert not found[1, :, 20:].any()
    torch.testing.assert_close(found[1:, :, :20], made(features[1:, :, :20], torch.tensor([20])))


def test_utterance_and_global_are_what_they_say():
    features = torch.randn(1, 6, 50) * 3 + 1
    found = normaliser("utterance")(features, torch.tensor([50]))[0]
    torch.testing.assert_close(found.mean(1), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(1, correction=0), torch.ones(6))
    mean, deviation = torch.linspace(-3, 3, 6)[:, None], torch.linspace(0.5, 2, 6)[:, None]
    torch.testing.assert_close(normaliser("global")(features, torch.tensor([50])), (features - mean) / deviation)


def test_adaptive_statistics_are_those_of_training_and_all_frames_so_far():
    features = torch.randn(1, 6, 40)
    made = normaliser("adaptive")
    found, _ = made.continued(features, None)
    mean, second = made.mean.double(), made.mean.double() ** 2 + made.deviation.double() ** 2
    heard = features[0, :, :25].double()
    m = (300 * mean + heard.sum(1)) / 325
    s = (300 * second + heard.square().sum(1)) / 325
    torch.testing.assert_close(found[0, :, 24], ((heard[:, -1] - m) / (s - m**2).sqrt()).float())


def test_adaptive_normalisation_of_a_stream_is_bit_equal_however_it_is_cut():
    features, made = torch.randn(2, 6, 73), normaliser("adaptive")
    whole, _ = made.continued(features, None)
    parts, heard = [], None
    for part in features.split([1, 0, 17, 40, 15], dim=2):
        normalised, heard = made.continued(part, heard)
        parts.append(normalised)
    assert torch.equal(torch.cat(parts, 2), whole)
