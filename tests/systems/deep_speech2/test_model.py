"""The whole network: padding, neighbours, published sizes, every variant of the paper's tables."""

from dataclasses import replace

import pytest
import torch

from seqloom.core.errors import ConfigError
from seqloom.systems.deep_speech2.budget import parameters
from seqloom.systems.deep_speech2.config import ConvConfig, DeepSpeech2Config, FeatureConfig, RecurrentConfig
from seqloom.systems.deep_speech2.model import DeepSpeech2
from tiny_speech import narrow

SMALL = narrow().model
TWO = (ConvConfig(channels=3, kernel=(5, 5), stride=(2, 2)), ConvConfig(channels=4, kernel=(3, 5), stride=(2, 1)))
ONE_D = (ConvConfig(channels=6, kernel=(1, 5)), ConvConfig(channels=6, kernel=(1, 5), stride=(1, 3)))
VARIANTS = {
    "2d": SMALL,
    "two 2d, gru, connected": replace(
        SMALL, conv=TWO, recurrent=replace(SMALL.recurrent, kind="gru", directions="concat"), connected=(7, 5)
    ),
    "1d, stride 3, unshared": replace(
        SMALL, convolution="1d", conv=ONE_D, recurrent=replace(SMALL.recurrent, inputs="separate")
    ),
    "row convolution, adaptive": replace(
        SMALL,
        features=FeatureConfig(bins=20, normalisation="adaptive", power_normalisation=False),
        recurrent=replace(SMALL.recurrent, kind="gru", directions="forward", candidate="clipped_relu"),
        row_context=2,
    ),
    "no norm": replace(SMALL, norm="none", connected=(6,)),
    "input norm": replace(SMALL, norm="input"),
}


@pytest.fixture(params=VARIANTS)
def model(request):
    torch.manual_seed(0)
    return DeepSpeech2(VARIANTS[request.param])


def batch(frames=(40, 23, 31)):
    features = torch.randn(len(frames), 20, max(frames), generator=torch.Generator().manual_seed(1))
    return features, torch.tensor(frames)


def test_shapes_and_parameters_are_the_formulas(model):
    logits, steps = model(*batch())
    assert steps.tolist() == [model.config.output_length(frames) for frames in (40, 23, 31)]
    assert logits.shape == (3, max(steps.tolist()), 29)
    assert sum(p.numel() for p in model.parameters()) == parameters(model.config)


@torch.no_grad()
def test_an_answer_depends_neither_on_neighbours_nor_on_padding(model):
    features, lengths = batch()
    model(features, lengths)  # running statistics that are not those of a fresh model
    model.eval()
    spoilt = features.clone()
    spoilt[1, :, 23:] = 1e3
    together, steps = model(spoilt, lengths)
    alone, count = model(features[1:2, :, :23], lengths[1:2])
    assert int(count) == int(steps[1])
    torch.testing.assert_close(together[1:2, : int(count)], alone, atol=1e-4, rtol=1e-4)


def test_training_statistics_leave_padding_out(model):
    features, lengths = batch()
    spoilt = features.clone()
    spoilt[1, :, 23:] = 1e3
    first, steps = model(features, lengths)
    second, _ = model(spoilt, lengths)
    torch.testing.assert_close(first[1, : steps[1]], second[1, : steps[1]], atol=1e-4, rtol=1e-4)


def test_every_parameter_gets_a_gradient(model):
    logits, steps = model(*batch())
    sum(row[:count].square().sum() for row, count in zip(logits, steps, strict=True)).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@torch.no_grad()
def test_a_forward_model_hears_only_its_context_ahead():
    torch.manual_seed(0)
    model = DeepSpeech2(VARIANTS["row convolution, adaptive"]).eval()
    features, _ = batch((40,))
    changed = features.clone()
    changed[..., 30:] += 1
    before, after = model(features, torch.tensor([40]))[0], model(changed, torch.tensor([40]))[0]
    # Step s sees frames up to 2 (s + 2) + 2: two steps by the row convolution, two frames by the kernel of five.
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


def test_published_sizes_come_out():
    for recurrent, total, width in [(7, 9, 1280), (5, 7, 1510), (3, 5, 1880), (1, 5, 2400)]:
        config = DeepSpeech2Config(
            convolution="1d",
            conv=(ConvConfig(channels=width, kernel=(1, 11), stride=(1, 2)),),
            recurrent=RecurrentConfig(layers=recurrent, width=width),
            connected=(width,) * (total - 1 - recurrent),
        )
        assert parameters(config) == pytest.approx(38e6, rel=0.06)


def test_impossible_shapes_are_refused():
    with pytest.raises(ConfigError, match=r"kernel: \(4, 5\) cannot be centred"):
        replace(SMALL, conv=(ConvConfig(channels=1, kernel=(4, 5)),))
    with pytest.raises(ConfigError, match="row_context"):
        replace(SMALL, row_context=3)
    with pytest.raises(ConfigError, match="takes all bins as channels"):
        replace(SMALL, convolution="1d")
