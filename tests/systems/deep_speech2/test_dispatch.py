"""Batch Dispatch: who is heard when, and that company changes no text."""

import numpy as np
import pytest
import torch

from seqloom.systems.deep_speech2.dispatch import BacklogError, Broken, Dispatcher, Ended, Final, Partial
from seqloom.systems.deep_speech2.endpoint import EndpointConfig
from seqloom.systems.deep_speech2.simulate import simulate
from seqloom.systems.deep_speech2.stream import Stream, StreamingModel
from streaming_speech import excited, listener, sound


@pytest.fixture(scope="module")
def model():
    return StreamingModel(excited())


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def opened(dispatcher, count, rules=None, rate=16000):
    events = [[] for _ in range(count)]
    sessions = [dispatcher.open(listener(dispatcher.model, rules), each.append, rate) for each in events]
    return sessions, events


def text(events):
    return " ".join(event.segment.text for event in events if isinstance(event, Final))


def alone(model, samples):
    stream = Stream(model, listener(model))
    stream.accept(samples)
    return stream.finish().text


def test_whoever_waits_is_one_batch_and_nobody_waits_for_it(model):
    clock = Clock()
    dispatcher = Dispatcher(model, max_batch=3, clock=clock)
    sessions, events = opened(dispatcher, 5)
    assert not dispatcher.step()
    dispatcher.put(sessions[0], sound(0.1).numpy())
    assert dispatcher.step()
    for session in sessions:
        clock.now += 1.0
        dispatcher.put(session, sound(0.1).numpy())
        dispatcher.end(session)
    while dispatcher.step():
        clock.now += 1.0
    assert dispatcher.statistics.batches == {1: 1, 3: 1, 2: 1}
    assert list(dispatcher.statistics.queue) == [0.0, 4.0, 3.0, 2.0, 2.0, 1.0]
    assert list(dispatcher.statistics.latencies) == [4.0, 3.0, 2.0, 2.0, 1.0]
    assert dispatcher.statistics.audio_seconds == pytest.approx(0.6)
    assert [each[-1] for each in events] == [Ended(0.2)] + [Ended(0.1)] * 4


def test_one_far_behind_takes_turns_with_the_others(model):
    dispatcher = Dispatcher(model, max_batch=1)
    (long, short), events = opened(dispatcher, 2)
    dispatcher.put(long, sound(3.0).numpy())
    dispatcher.put(short, sound(0.2).numpy())
    dispatcher.end(short)
    dispatcher.step()
    dispatcher.step()
    assert isinstance(events[1][-1], Ended)
    assert long.backlog_seconds == 2.0


@pytest.mark.parametrize("max_batch", [1, 4])
def test_company_changes_no_text(model, max_batch):
    sounds = [sound(0.4 + 0.3 * seed, seed) for seed in range(5)]
    dispatcher = Dispatcher(model, max_batch=max_batch)
    sessions, events = opened(dispatcher, 5)
    draw = np.random.default_rng(0)
    left = [samples.numpy() for samples in sounds]
    while any(len(each) for each in left):
        number = int(draw.integers(5))
        size = int(draw.integers(1, 4000))
        if len(left[number]):
            dispatcher.put(sessions[number], left[number][:size])
            left[number] = left[number][size:]
            if not len(left[number]):
                dispatcher.end(sessions[number])
        if draw.random() < 0.3:
            dispatcher.step()
    while dispatcher.step():
        pass
    assert [text(each) for each in events] == [alone(model, samples) for samples in sounds]
    assert max(dispatcher.statistics.batches) == max_batch


def test_utterances_are_told_and_the_stream_goes_on(model):
    dispatcher = Dispatcher(model)
    (session,), (events,) = opened(dispatcher, 1, EndpointConfig(longest_seconds=0.5), rate=8000)
    dispatcher.put(session, sound(1.0).numpy())  # two seconds at this rate
    dispatcher.end(session)
    while dispatcher.step():
        pass
    finals = [event.segment for event in events if isinstance(event, Final)]
    assert [round(one.start, 2) for one in finals] == [0.0, 0.5, 1.0, 1.5]
    assert any(isinstance(event, Partial) for event in events)
    assert events[-1] == Ended(2.0)


def test_a_flood_is_refused_and_a_broken_stream_breaks_alone(model):
    dispatcher = Dispatcher(model, backlog_seconds=1.0)
    (flood, broken, good), events = opened(dispatcher, 3)
    for _ in range(10):
        dispatcher.put(flood, np.zeros(1600, np.float32))
    with pytest.raises(BacklogError, match="more than 1 s"):
        dispatcher.put(flood, np.zeros(1600, np.float32))
    dispatcher.cancel(flood)
    dispatcher.put(broken, np.full(8000, np.nan, np.float32))
    dispatcher.put(good, sound(0.5).numpy())
    dispatcher.end(good)
    while dispatcher.step():
        pass
    assert not events[0]
    assert isinstance(events[1][-1], Broken)
    assert text(events[2]) == alone(model, sound(0.5))


def test_a_worker_hears_and_stops(model):
    dispatcher = Dispatcher(model, backlog_seconds=0.5)
    (session,), (events,) = opened(dispatcher, 1)
    dispatcher.start()
    for piece in sound(2.0).split(4000):
        dispatcher.put(session, piece.numpy(), wait=True)  # more than may wait at once
    dispatcher.end(session)
    while not (events and isinstance(events[-1], Ended)):
        assert dispatcher.running
    dispatcher.stop()
    assert not dispatcher.running
    assert text(events) == alone(model, sound(2.0))


def test_simulated_streams_hear_what_they_would_alone(model):
    recordings = [sound(0.5, seed) for seed in range(3)]
    found = {
        size: simulate(model, 2, utterances=6, recordings=[one.numpy() for one in recordings], max_batch=size)
        for size in (1, 8)
    }
    for size, simulation in found.items():
        assert simulation.texts == [alone(model, one) for one in recordings] * 2
        assert len(simulation.statistics.latencies) == 6
        assert simulation.statistics.audio_seconds == pytest.approx(3.0)
        assert max(simulation.statistics.batches) <= size
        assert 0 < simulation.statistics.latency(50.0) <= simulation.statistics.latency(98.0)


def test_load_that_one_by_one_cannot_carry_is_carried_in_batches(model):
    """With a clock on which a batch takes the same time whatever its size."""
    ticks = iter(range(10**9))
    found = {
        size: simulate(model, 8, utterances=16, seconds=0.4, max_batch=size, timer=lambda: next(ticks) * 0.02)
        for size in (1, 8)
    }
    assert found[8].statistics.latency(98.0) < 0.5 * found[1].statistics.latency(98.0)
    assert found[8].statistics.mean_batch > 2
    assert torch.isfinite(torch.tensor(found[1].seconds))
