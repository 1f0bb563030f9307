"""One stream over a WebSocket.

    client -> {"type": "start", "sample_rate": 16000}      first
              binary: PCM of 16 bits, little endian, mono   any number of times
              {"type": "end"}                               last
    server -> {"type": "partial", "text"}                   whenever the text of the utterance changes
              {"type": "final", "text", "start", "end", "confidence", "words"}    after each utterance
              {"type": "end", "seconds"}                    all was heard; then the connection is closed
              {"type": "error", "code", "message"}          likewise

What waits in either direction is bounded: a client that floods, stalls or breaks the rules loses its own stream, and
no other one notices.
"""

import asyncio
import contextlib
import dataclasses
import json
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from seqloom.data.audio import Samples
from seqloom.systems.deep_speech2.dispatch import BacklogError, Broken, Ended, Event, Final, Partial, Session
from seqloom.systems.deep_speech2.service import BusyError, Service
from seqloom.systems.deep_speech2.transcript import Segment

RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 96000)
WAITING_FINALS = 256
CLOSE_SECONDS = 5.0
"""How long an error and the closing may take to be sent."""


class RefusedError(Exception):
    """The stream is closed with an error.

    Args:
        code: a word for programs.
        status: of the WebSocket's closing, RFC 6455.
    """

    def __init__(self, code: str, message: str, status: int = 1008) -> None:
        super().__init__(message)
        self.code, self.status = code, status


class GoneError(Exception):
    """The client has gone."""


class Outbox:
    """Events on their way to the client; a partial text that was not sent yet is replaced by the next one."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._filled = asyncio.Event()
        self._overflow = False

    def put(self, event: Event) -> None:
        if self._events and isinstance(self._events[-1], Partial):
            self._events.pop()
        if len(self._events) >= WAITING_FINALS:
            self._overflow = True
        else:
            self._events.append(event)
        self._filled.set()

    async def get(self) -> Event:
        """
        Raises:
            RefusedError: more was waiting than may.
        """
        await self._filled.wait()
        if self._overflow:
            raise RefusedError("stalled", "the texts are not taken as fast as they come")
        event = self._events.popleft()
        if not self._events:
            self._filled.clear()
        return event


class Conversation:
    """
    Args:
        socket: a WebSocket of starlette.
    """

    def __init__(self, socket: Any, service: Service) -> None:
        self._socket, self._service = socket, service
        self._session: Session | None = None
        self._outbox = Outbox()

    async def run(self) -> None:
        """From the handshake to the closing."""
        await self._socket.accept()
        tasks = {asyncio.create_task(self._read()), asyncio.create_task(self._write())}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            if self._session is not None:
                self._service.close(self._session)
        errors = [task.exception() for task in done if task.exception() is not None]
        if any(isinstance(error, GoneError) for error in errors):
            return
        refusal = next((error for error in (*errors, *outcomes) if isinstance(error, RefusedError)), None)
        if refusal is None and errors:
            assert errors[0] is not None
            raise errors[0]
        await self._close(refusal)

    async def _close(self, refusal: RefusedError | None) -> None:
        with contextlib.suppress(TimeoutError, RuntimeError):  # a client that takes nothing, or has gone
            async with asyncio.timeout(CLOSE_SECONDS):
                if refusal is not None:
                    self._service.metrics.refused.labels(reason=refusal.code).inc()
                    await self._send({"type": "error", "code": refusal.code, "message": str(refusal)})
                await self._socket.close(1000 if refusal is None else refusal.status)

    async def _read(self) -> None:
        """Until the client leaves or breaks a rule."""
        ended = False
        while True:
            data = await self._receive(None if ended else self._service.settings.idle_seconds)
            if ended:
                raise RefusedError("protocol", "nothing may follow the end")
            if isinstance(data, bytes):
                self._put(data)
            elif (message := _parsed(data))["type"] == "start":
                self._start(message)
            elif self._session is None:
                raise RefusedError("protocol", "the first message must be a start")
            else:
                self._service.dispatcher.end(self._session)
                ended = True

    async def _receive(self, seconds: float | None) -> str | bytes:
        try:
            async with asyncio.timeout(seconds):
                message = await self._socket.receive()
        except TimeoutError:
            raise RefusedError("idle", f"nothing came for {seconds:g} s") from None
        if message["type"] == "websocket.disconnect":
            raise GoneError
        data: str | bytes = message.get("bytes") if message.get("bytes") is not None else message["text"]
        if len(data) > (most := self._service.settings.max_message_bytes):
            raise RefusedError("too_large", f"a message of {len(data):,} bytes; at most {most:,} are allowed", 1009)
        return data

    def _start(self, message: Mapping[str, Any]) -> None:
        if self._session is not None:
            raise RefusedError("protocol", "the stream has started already")
        if unknown := sorted(message.keys() - {"type", "sample_rate"}):
            raise RefusedError("protocol", f"start: '{unknown[0]}' is not known; known: sample_rate")
        rate = message.get("sample_rate", 16000)
        if rate not in RATES or isinstance(rate, bool):
            raise RefusedError("protocol", f"start: sample_rate {rate!r}; allowed: {', '.join(map(str, RATES))}")
        loop = asyncio.get_running_loop()

        def deliver(event: Event) -> None:
            loop.call_soon_threadsafe(self._outbox.put, event)

        try:
            self._session = self._service.open(deliver, int(rate))
        except BusyError as error:
            raise RefusedError("busy", str(error), 1013) from None

    def _put(self, data: bytes) -> None:
        if self._session is None:
            raise RefusedError("protocol", "the first message must be a start")
        try:
            self._service.dispatcher.put(self._session, samples_of(data))
        except BacklogError as error:
            raise RefusedError("backlog", str(error)) from None

    async def _write(self) -> None:
        """Until all is said."""
        while True:
            event = await self._outbox.get()
            if isinstance(event, Broken):
                raise RefusedError("internal", f"the stream cannot go on: {event.error}", 1011)
            message: dict[str, Any] = (
                {"type": "partial", "text": event.text}
                if isinstance(event, Partial)
                else final(event.segment)
                if isinstance(event, Final)
                else {"type": "end", "seconds": event.seconds}
            )
            try:
                async with asyncio.timeout(self._service.settings.idle_seconds):
                    await self._send(message)
            except TimeoutError:
                raise RefusedError("stalled", "the texts are not taken") from None
            if isinstance(event, Ended):
                return

    async def _send(self, message: Mapping[str, Any]) -> None:
        from starlette.websockets import WebSocketDisconnect

        try:
            await self._socket.send_text(json.dumps(message, ensure_ascii=False))
        except WebSocketDisconnect:
            raise GoneError from None


def final(segment: Segment) -> dict[str, Any]:
    """The message that tells an utterance."""
    words = [{**dataclasses.asdict(word)} for word in segment.words]
    for word in words:
        del word["characters"]
    facts = {"text": segment.text, "start": segment.start, "end": segment.end, "confidence": segment.confidence}
    return {"type": "final", **facts, "words": words}


def samples_of(data: bytes) -> Samples:
    """PCM as numbers between -1 and 1.

    Raises:
        RefusedError: half a sample is missing.
    """
    if len(data) % 2:
        raise RefusedError("protocol", f"a message of {len(data)} bytes; samples have two each")
    return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)


def _parsed(text: str) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise RefusedError("protocol", "a text message that is not JSON") from None
    if not isinstance(message, dict) or message.get("type") not in ("start", "end"):
        raise RefusedError("protocol", 'a text message must be {"type": "start", ...} or {"type": "end"}')
    return message
