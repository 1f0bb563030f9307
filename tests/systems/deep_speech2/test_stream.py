"""Streams against whole utterances: any pieces, any company, every kind of layer."""

from dataclasses import replace

import pytest
import torch

from seqloom.core.errors import ConfigError
from seqloom.nn.state import LayerState
from seqloom.systems.deep_speech2.config import ConvConfig
from seqloom.systems.deep_speech2.endpoint import Endpoint, EndpointConfig
from seqloom.systems.deep_speech2.features import utterance_features
from seqloom.systems.deep_speech2.stream import Stream, StreamingModel
from streaming_speech import SMALL, excited, listener, sound

ONE_D = (ConvConfig(channels=5, kernel=(1, 5)), ConvConfig(channels=6, kernel=(1, 1), stride=(1, 3)))
VARIANTS = {
    "2d, gru, row convolution, adaptive": SMALL,
    "1d, rnn, stride beyond the kernel, global": replace(
        SMALL,
        features=replace(SMALL.features, bins=161, normalisation="global"),
        convolution="1d",
        conv=ONE_D,
        recurrent=replace(SMALL.recurrent, kind="rnn"),
        row_context=None,
        connected=(9,),
    ),
    "no norm": replace(SMALL, norm="none", connected=(7,)),
    "input norm": replace(SMALL, norm="input", row_context=1),
}


@pytest.fixture(params=VARIANTS)
def model(request):
    return StreamingModel(excited(VARIANTS[request.param]))


def heard(model, samples, sizes):
    state, found, start = model.begin(), [], 0
    for size in sizes:
        found += model.hear(state, [samples[start : start + size]], [False])
        start += size
    found += model.hear(state, [samples[start:]], [True])
    return torch.cat(found)


@pytest.mark.parametrize("seconds", [0.0, 0.019, 0.02, 0.05, 0.6])
def test_a_stream_is_the_whole_utterance(model, seconds):
    samples = sound(seconds)
    found = heard(model, samples, [])
    features = utterance_features(samples, model.config.features)
    if not features.shape[1]:
        assert found.shape == (0, 29)
        return
    with torch.inference_mode():
        logits, steps = model.model(features[None], torch.tensor([features.shape[1]]))
    assert len(found) == steps[0]
    torch.testing.assert_close(found, logits[0, : steps[0]].log_softmax(-1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("sizes", [[310, *[1] * 180], [7, 0, 313, 1, 2000, 0], [160] * 40, [4321], [9000]])
def test_the_size_of_pieces_changes_no_bit(model, sizes):
    samples = sound(0.6)
    assert torch.equal(heard(model, samples, sizes), heard(model, samples, []))


def test_company_changes_no_bit(model):
    """Streams join and leave a batch at different progress."""
    lengths = (0.7, 0.3, 0.05)
    sounds = [sound(seconds, seed) for seed, seconds in enumerate(lengths)]
    states = [model.begin() for _ in sounds]
    found = [model.hear(states[0], [sounds[0][:5000]], [False])[0]]
    states[0].join(states[1:])
    together = model.hear(states[0], [sounds[0][5000:9000], sounds[1][:777], sounds[2]], [False, False, True])
    states[0].select(torch.tensor([1, 0]))  # the third one is over
    rest = model.hear(states[0], [sounds[1][777:], sounds[0][9000:]], [True, True])
    assert torch.equal(torch.cat([*found, together[0], rest[1]]), heard(model, sounds[0], []))
    assert torch.equal(torch.cat([together[1], rest[0]]), heard(model, sounds[1], []))
    assert torch.equal(together[2], heard(model, sounds[2], []))


def test_the_state_keeps_the_contract_and_goes_back(model):
    samples, state = sound(0.5), model.begin()
    assert all(isinstance(layer, LayerState) for layer in (state, *state.layers))
    model.hear(state, [samples[:3000]], [False])
    mark, size = state.snapshot(), state.nbytes
    first = model.hear(state, [samples[3000:]], [True])[0]
    state.restore(mark)
    assert state.nbytes == size > 0
    assert torch.equal(model.hear(state, [samples[3000:]], [True])[0], first)
    for _ in range(3):
        model.hear(state, [samples], [False])
    assert state.nbytes < size + 20_000  # an hour needs no more than a second


def test_models_that_need_the_future_are_refused():
    cases = {
        "directions: 'sum'.*an4_streaming": replace(
            SMALL, recurrent=replace(SMALL.recurrent, directions="sum"), row_context=None
        ),
        "power_normalisation: 'True'": replace(SMALL, features=replace(SMALL.features, power_normalisation=True)),
        "normalisation: 'utterance'": replace(SMALL, features=replace(SMALL.features, normalisation="utterance")),
    }
    for message, config in cases.items():
        with pytest.raises(ConfigError, match=message):
            StreamingModel(excited(config))


def test_partial_texts_grow_into_the_transcript_with_times():
    model = StreamingModel(excited())
    stream, samples = Stream(model, listener(model)), sound(1.0)
    partials = [stream.accept(piece) for piece in samples.split(1600)]
    found = stream.finish()
    assert partials[0] != partials[-1]
    assert found.text.startswith(partials[-1][:5])
    assert found.seconds == 1.0
    times = [time for word in found.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert " ".join(word.text for word in found.words) == found.text
    assert times[-1] <= 1.0


def test_utterances_end_by_the_rules_wherever_pieces_are_cut():
    log_probs = torch.full((400, 3), -5.0)
    log_probs[:, 0] = 0.0
    log_probs[[*range(50, 60), 80, 280, *range(290, 390)], 1] = 1.0  # nothing, words, silence, words without end
    rules = EndpointConfig(silence_seconds=0.5, nothing_seconds=1.0, longest_seconds=2.0)
    ends = set()
    for size in (1, 7, 400):
        endpoint, found, place = Endpoint(rules, 0.02, ("", "a", " ")), [], 0
        for piece in log_probs.split(size):
            while (count := endpoint.find(piece)) is not None:
                place += count
                found.append(place)
                piece = piece[count:]
                endpoint.reset()
            place += len(piece)
        ends.add(tuple(found))
    assert ends == {(50, 106, 156, 206, 256, 356)}
