"""What a speech server serves with: the model, its dispatcher, decoders, and limits.

Each stream gets a decoder and the rules of `endpoint.py`; recordings go through the dispatcher as streams that come
faster, a second of sound at a turn, so they keep nobody waiting.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, BinaryIO

from seqloom.core.config import Ge, Gt, Interval, config
from seqloom.data.audio import RATE, stream_audio
from seqloom.systems.deep_speech2.beam_search import WIDEST_BEAM, BeamConfig, Decoder
from seqloom.systems.deep_speech2.dispatch import Broken, Dispatcher, Ended, Event, Final, Session
from seqloom.systems.deep_speech2.endpoint import EndpointConfig
from seqloom.systems.deep_speech2.greedy import Greedy
from seqloom.systems.deep_speech2.server_metrics import Metrics
from seqloom.systems.deep_speech2.stream import Listener, Searches, StreamingModel
from seqloom.systems.deep_speech2.transcribe import Recogniser
from seqloom.systems.deep_speech2.transcript import Segment, Transcript

SEARCH_BEAM = 64
_TICK = 0.5  # seconds between looks whether the worker still lives


@config
class ServerConfig:
    """How to serve a speech recogniser."""

    max_batch: Annotated[int, Interval(ge=1, le=256)] = 16
    """Streams heard together at most; 1 serves them one by one."""
    max_streams: Annotated[int, Ge(1)] = 64
    """Streams and recordings under way at a time; more are refused."""
    backlog_seconds: Annotated[float, Gt(0)] = 30.0
    """Sound of a stream that may wait to be heard; one that floods beyond is closed."""
    idle_seconds: Annotated[float, Gt(0)] = 30.0
    """A stream that sends nothing, or takes nothing, for so long is closed."""
    max_message_bytes: Annotated[int, Ge(256)] = 1 << 20
    max_file_bytes: Annotated[int, Ge(1024)] = 100 << 20
    endpoint: EndpointConfig = EndpointConfig()
    beam: Annotated[int, Interval(ge=1, le=WIDEST_BEAM)] | None = None
    """Texts that the search keeps; without a language model or lexicon the default is none, the greedy decoder."""
    lm: Path | None = None
    """An ARPA language model."""
    alpha: float | None = None
    """Weight of the language model, in place of the tuned one."""
    beta: float | None = None
    """Added for every word, in place of the tuned one."""
    lexicon: Path | None = None
    """A text file with the only words that may be, one a line."""


class BusyError(Exception):
    """As many streams as may be are under way."""


class Service:
    """
    Args:
        recogniser: whose model hears the past only.
        name: what clients know the model by.
    Raises:
        ConfigError: the model cannot stream, or the language model does not suit it.
    """

    def __init__(self, recogniser: Recogniser, name: str, settings: ServerConfig) -> None:
        self.name, self.settings = name, settings
        self.metrics = Metrics()
        self.model = StreamingModel(recogniser.model)
        self._decoder = _decoders(recogniser, settings)
        self.dispatcher = Dispatcher(
            self.model,
            max_batch=settings.max_batch,
            backlog_seconds=settings.backlog_seconds,
            statistics=self.metrics,
        )
        self._open: set[Session] = set()
        self._lock = threading.Lock()

    def open(self, deliver: Callable[[Event], None], rate: int = RATE) -> Session:
        """A new stream; `close` it.

        Raises:
            BusyError: there are too many.
        """
        with self._lock:
            if len(self._open) >= self.settings.max_streams:
                raise BusyError(f"{self.settings.max_streams} streams are under way; try again later")
            listener = Listener(self._decoder(), self.model, self.settings.endpoint)
            session = self.dispatcher.open(listener, deliver, rate)
            self._open.add(session)
        self.metrics.active.inc()
        return session

    def close(self, session: Session) -> None:
        """The stream is over, or given up."""
        self.dispatcher.cancel(session)
        with self._lock:
            self._open.discard(session)
        self.metrics.active.dec()

    def transcribe(self, name: str, recording: BinaryIO) -> Transcript:
        """A whole recording, heard among the streams; blocks the calling thread.

        Raises:
            BusyError: there are too many.
            DataError: it cannot be read.
        """
        done = threading.Event()
        segments: list[Segment] = []
        seconds, error = 0.0, None

        def deliver(event: Event) -> None:
            nonlocal seconds, error
            if isinstance(event, Final):
                segments.append(event.segment)
            elif isinstance(event, Ended):
                seconds = event.seconds
                done.set()
            elif isinstance(event, Broken):
                error = event.error
                done.set()

        session = self.open(deliver)
        try:
            for block in stream_audio(recording, block_seconds=min(10.0, self.settings.backlog_seconds / 2)):
                self.dispatcher.put(session, block, wait=True)
                if error is not None:
                    break
            else:
                self.dispatcher.end(session)
            while not done.wait(_TICK):
                assert self.dispatcher.running, "the worker has ended"
            if error is not None:
                raise error
        finally:
            self.close(session)
        return Transcript(name, seconds, tuple(segments))


def _decoders(recogniser: Recogniser, settings: ServerConfig) -> Callable[[], Searches]:
    plain = settings.lm is None and settings.lexicon is None
    rules = recogniser.prior(settings.lm, settings.alpha, settings.beta, settings.lexicon)  # also checks them
    if plain and settings.beam is None:
        return lambda: Greedy(recogniser.alphabet.symbols)
    return lambda: Decoder(rules, BeamConfig(beam=settings.beam or SEARCH_BEAM))
