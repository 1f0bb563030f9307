"""Batch Dispatch: one worker hears all streams, and whatever waits when it is free is one batch.

    as soon as the worker is free: take the streams that have sound waiting, at most `max_batch`, the longest waiting
    first; join their states; one forward pass; take the states apart again; decode

It never waits for a batch to fill, so a lone stream is served at once; under load more sound has come meanwhile, the
batches grow, and the cost of a stream falls. With `max_batch` 1 it serves streams one by one. A stream's text is the
same in any company. Paper: Deep Speech 2, section 7.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqloom.core.errors import DataError, SeqloomError
from seqloom.data.audio import RATE, Samples, resampler
from seqloom.systems.deep_speech2.stream import Listener, StreamingModel
from seqloom.systems.deep_speech2.stream_state import StreamState
from seqloom.systems.deep_speech2.transcript import Segment

TURN_SECONDS = 1.0
"""Sound of a stream that one batch takes, so that one who is far behind does not keep the others waiting."""
KEPT = 10_000  # latencies that the statistics remember


class Partial(NamedTuple):
    """Text of the utterance so far."""

    text: str


class Final(NamedTuple):
    """An utterance that is over."""

    segment: Segment


class Ended(NamedTuple):
    """All was heard."""

    seconds: float


class Broken(NamedTuple):
    """The stream cannot go on."""

    error: Exception


Event = Partial | Final | Ended | Broken


class BacklogError(DataError):
    """A stream sends faster than it can be heard."""


class Statistics:
    """What a dispatcher has done.

    Attributes:
        batches: size -> how many of them.
        queue: seconds that sound had waited when its batch began, of the last streams in batches.
        latencies: seconds from the end of a user's sound to the final text, of the last streams.
        audio_seconds, busy_seconds: sound heard, and time spent on it.
    """

    def __init__(self) -> None:
        self.batches: Counter[int] = Counter()
        self.queue: deque[float] = deque(maxlen=KEPT)
        self.latencies: deque[float] = deque(maxlen=KEPT)
        self.audio_seconds = self.busy_seconds = 0.0

    def on_batch(self, queued: list[float], audio_seconds: float, busy_seconds: float) -> None:
        """A batch is done."""
        self.batches[len(queued)] += 1
        self.queue.extend(queued)
        self.audio_seconds += audio_seconds
        self.busy_seconds += busy_seconds

    def on_end(self, latency: float) -> None:
        """A stream is over."""
        self.latencies.append(latency)

    def latency(self, percent: float) -> float:
        """A percentile of the latencies, in seconds; NaN before the first."""
        return float(np.percentile(list(self.latencies), percent)) if self.latencies else float("nan")

    @property
    def mean_batch(self) -> float:
        """Streams in a batch, on average."""
        return sum(size * count for size, count in self.batches.items()) / max(1, self.batches.total())


class Session:
    """One stream at the dispatcher; made by `Dispatcher.open`."""

    def __init__(self, state: StreamState, listener: Listener, deliver: Callable[[Event], None], rate: int) -> None:
        self.state, self.listener, self.deliver, self.rate = state, listener, deliver, rate
        self.resample = resampler(rate, RATE)
        self.waiting: deque[Samples] = deque()
        self.waiting_samples = 0
        self.since = 0.0  # when the first of them came
        self.ended_at: float | None = None
        self.heard_samples = 0
        self.partial = ""

    @property
    def backlog_seconds(self) -> float:
        """Sound that waits."""
        return self.waiting_samples / self.rate


class Dispatcher:
    """The scheduler. `step` runs one batch in the calling thread; `start` and `stop` have a worker do it.

    Args:
        max_batch: streams in a batch at most.
        backlog_seconds: sound of one stream that may wait.
        clock: seconds.
    """

    def __init__(
        self,
        model: StreamingModel,
        *,
        max_batch: int = 16,
        backlog_seconds: float = 30.0,
        statistics: Statistics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert max_batch >= 1
        self.model, self.max_batch, self.backlog_seconds = model, max_batch, backlog_seconds
        self.statistics = statistics or Statistics()
        self._clock = clock
        self._ready: dict[Session, None] = {}  # in the order in which they wait
        self._change = threading.Condition()
        self._stopping = False
        self._worker: threading.Thread | None = None

    def open(self, listener: Listener, deliver: Callable[[Event], None], rate: int = RATE) -> Session:
        """A new stream.

        Args:
            deliver: called in the worker's thread with what happens; must not block.
            rate: samples per second of what will be put in.
        """
        return Session(self.model.begin(), listener, deliver, rate)

    def put(self, session: Session, samples: Samples, *, wait: bool = False) -> None:
        """Further sound of a stream.

        Args:
            wait: for room, where too much waits already.
        Raises:
            BacklogError: there is no room; the stream is then cancelled.
        """
        assert session.ended_at is None, "the stream has ended"
        seconds = len(samples) / session.rate
        with self._change:
            while wait and not self._stopping and session.backlog_seconds + seconds > self.backlog_seconds:
                self._change.wait()
            if session.backlog_seconds + seconds > self.backlog_seconds:
                self._ready.pop(session, None)
                raise BacklogError(
                    f"more than {self.backlog_seconds:g} s of sound wait to be heard; send it at the speed of speech"
                )
            session.waiting.append(samples)
            session.waiting_samples += len(samples)
            self._queue(session)

    def end(self, session: Session) -> None:
        """No more sound will come; `Ended` follows the rest."""
        with self._change:
            session.ended_at = self._clock()
            self._queue(session)

    def cancel(self, session: Session) -> None:
        """Forget a stream and what waits of it."""
        with self._change:
            self._ready.pop(session, None)
            session.waiting.clear()
            session.waiting_samples = 0
            self._change.notify_all()

    def step(self) -> bool:
        """Hear one batch; False if no sound waits."""
        with self._change:
            begun = self._clock()
            turns = [self._take(session, begun) for session in list(self._ready)[: self.max_batch]]
            self._change.notify_all()  # there is room again
        if not turns:
            return False
        seconds = sum(len(turn.samples) for turn in turns) / RATE
        try:
            found = self._forward(turns)
        except Exception as error:  # whatever it is, the other streams go on
            for turn in turns:
                self._break(turn.session, error)
        else:
            for turn, log_probs in zip(turns, found, strict=True):
                self._decode(turn, log_probs)
        self.statistics.on_batch([turn.queued for turn in turns], seconds, self._clock() - begun)
        return True

    def start(self) -> None:
        """Have a thread hear whatever comes."""
        assert self._worker is None
        self._worker = threading.Thread(target=self._work, name="dispatch", daemon=True)
        self._worker.start()

    def stop(self) -> None:
        """End the thread after its present batch."""
        with self._change:
            self._stopping = True
            self._change.notify_all()
        if self._worker is not None:
            self._worker.join()

    @property
    def running(self) -> bool:
        """Whether the worker is alive."""
        return self._worker is not None and self._worker.is_alive()

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._ready or self._stopping)
                if self._stopping:
                    return
            self.step()

    def _queue(self, session: Session) -> None:
        if session not in self._ready:
            session.since = self._clock()
            self._ready[session] = None
            self._change.notify_all()

    def _take(self, session: Session, now: float) -> "_Turn":
        """The next sound of a stream, at most that of a turn; with more to come it goes to the end of the line."""
        room = round(TURN_SECONDS * session.rate)
        parts = []
        while session.waiting and room:
            first = session.waiting.popleft()
            parts.append(first[:room])
            if len(first) > room:
                session.waiting.appendleft(first[room:])
            room -= len(parts[-1])
        samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        session.waiting_samples -= len(samples)
        queued = now - session.since
        del self._ready[session]
        if session.waiting:
            session.since = now
            self._ready[session] = None
        last = session.ended_at is not None and not session.waiting
        return _Turn(session, session.resample(samples, last=last), last, queued)

    def _forward(self, turns: list["_Turn"]) -> list[Tensor]:
        states = [turn.session.state for turn in turns]
        before = [state.snapshot() for state in states]
        states[0].join(states[1:])
        try:
            together = [torch.from_numpy(turn.samples) for turn in turns]
            found = self.model.hear(states[0], together, [turn.last for turn in turns])
            after = states[0].snapshot()
        except BaseException:
            states[0].restore(before[0])
            raise
        for row, state in enumerate(states):
            state.restore(after)
            state.select(torch.tensor([row]))
        return found

    def _decode(self, turn: "_Turn", log_probs: Tensor) -> None:
        session = turn.session
        session.heard_samples += len(turn.samples)
        try:
            finished = session.listener.accept(log_probs)
            if turn.last:
                finished += session.listener.finish()
            text = session.listener.partial
        except SeqloomError as error:
            self._break(session, error)
            return
        for segment in finished:
            session.deliver(Final(segment))
        if text != session.partial and not turn.last:
            session.deliver(Partial(text))
        session.partial = text
        if turn.last:
            assert session.ended_at is not None
            self.statistics.on_end(self._clock() - session.ended_at)
            session.deliver(Ended(round(session.heard_samples / RATE, 3)))

    def _break(self, session: Session, error: Exception) -> None:
        self.cancel(session)
        session.deliver(Broken(error))


class _Turn(NamedTuple):
    """What a batch takes of a stream."""

    session: Session
    samples: Samples
    last: bool
    queued: float
