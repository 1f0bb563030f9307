"""Many people speaking at once, without people: real-time streams on a clock of their own.

Streams begin as a Poisson process, so many at a time on average, and each sends a piece of sound every so often, as a
microphone does. Between batches the clock jumps to whatever comes next; during a batch it follows real time. So what is
measured is what a worker of this speed would do to such users, in no more time than the computing takes.
Paper: Deep Speech 2, section 7 (latency by load, Batch Dispatch against one by one).
"""

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seqloom.core.seeds import derive, generator
from seqloom.data.audio import RATE, Samples
from seqloom.systems.deep_speech2.dispatch import Broken, Dispatcher, Event, Final, Statistics
from seqloom.systems.deep_speech2.greedy import Greedy
from seqloom.systems.deep_speech2.stream import Listener, StreamingModel


class VirtualClock:
    """Seconds that pass as they do while `running`, and otherwise only in jumps."""

    def __init__(self, timer: Callable[[], float] = time.perf_counter) -> None:
        self._timer = timer
        self._now = 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        return self._now + (0.0 if self._since is None else self._timer() - self._since)

    def run(self, work: Callable[[], bool]) -> bool:
        """Do something that takes time."""
        self._since = self._timer()
        done = work()
        self._now, self._since = self(), None
        return done

    def jump(self, to: float) -> None:
        self._now = max(self._now, to)


@dataclass(frozen=True)
class Simulation:
    """What the users met.

    Attributes:
        statistics: latencies, batch sizes and queue times.
        texts: of the streams, in the order in which they began.
        seconds: from the first sound to the last text.
    """

    statistics: Statistics
    texts: list[str]
    seconds: float


def simulate(
    model: StreamingModel,
    streams: int,
    *,
    utterances: int | None = None,
    seconds: float = 3.0,
    piece_seconds: float = 0.1,
    max_batch: int = 16,
    recordings: Sequence[Samples] = (),
    seed: int = 0,
    timer: Callable[[], float] = time.perf_counter,
) -> Simulation:
    """Serve real-time streams and measure.

    Args:
        streams: how many speak at a time, on average.
        utterances: streams in all; eight times `streams` unless given.
        seconds: length of each, where no recordings are given and noise is sent.
        piece_seconds: sound in one message.
        max_batch: 1 serves them one by one.
        recordings: at 16 kHz, sent in turn.
        timer: what batches are timed with.
    """
    count = 8 * streams if utterances is None else utterances
    sounds = list(recordings) or [
        torch.randn(round(seconds * RATE), generator=generator(seed, "sound", number)).mul(0.1).numpy()
        for number in range(min(count, 8))
    ]
    length = sum(map(len, sounds)) / len(sounds) / RATE
    begins = np.random.default_rng(derive(seed, "arrivals")).exponential(length / streams, count).cumsum()
    clock = VirtualClock(timer)
    dispatcher = Dispatcher(model, max_batch=max_batch, backlog_seconds=float("inf"), clock=clock)
    texts: list[list[str]] = [[] for _ in range(count)]
    sessions = [
        dispatcher.open(Listener(Greedy(model.symbols), model), _collector(texts[number])) for number in range(count)
    ]
    piece = round(piece_seconds * RATE)
    coming = [(begin + piece_seconds, number, 0) for number, begin in enumerate(begins.tolist())]
    heapq.heapify(coming)
    while True:
        while coming and coming[0][0] <= clock():
            _, number, start = heapq.heappop(coming)
            sound = sounds[number % len(sounds)]
            dispatcher.put(sessions[number], sound[start : start + piece])
            if start + piece >= len(sound):
                dispatcher.end(sessions[number])
            else:
                rest = min(piece, len(sound) - start - piece) / RATE
                heapq.heappush(coming, (begins[number] + (start + piece) / RATE + rest, number, start + piece))
        if not clock.run(dispatcher.step):
            if not coming:
                break
            clock.jump(coming[0][0])
    return Simulation(dispatcher.statistics, [" ".join(parts) for parts in texts], clock() - float(begins[0]))


def _collector(texts: list[str]) -> Callable[[Event], None]:
    def collect(event: Event) -> None:
        if isinstance(event, Broken):
            raise event.error
        if isinstance(event, Final):
            texts.append(event.segment.text)

    return collect
