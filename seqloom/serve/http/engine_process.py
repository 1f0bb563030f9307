"""The engine's process as the server sees it: started, watched, started again; requests go in, updates come out.

A bounded number of requests has a place; the next is told when to come again, before any work is done for it. When the
engine dies, the answers under way end with an error, and a new process is started, unless too many died in a row.
See `serve.worker` for the messages.
"""

import asyncio
import contextlib
import json
import struct
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from seqloom.core.errors import ConfigError
from seqloom.serve.http.errors import RefusedError
from seqloom.serve.http.metrics import Metrics

COMMAND = (sys.executable, "-P", "-m", "seqloom.serve.worker")
MOST_DEATHS = 5
"""In `DEATHS_SECONDS`; after that the engine stays dead, and `/ready` says so."""
DEATHS_SECONDS = 60.0
LOST = "the engine ended while it answered; it is started again"

_HEADER = struct.Struct(">I")
_CHUNK = 1 << 18
_PATIENCE = 2.0  # seconds, for a process that was asked to end


class Update(TypedDict):
    """What is new of an answer."""

    id: int
    pieces: list[tuple[str, str]]
    """(channel, text)"""
    tokens: list[int]
    logprobs: list[tuple[float | None, list[tuple[int, float]]]] | None
    prompt_logprobs: list[tuple[float | None, list[tuple[int, float]]]] | None
    finish: str | None
    """stop, length, eos, cancelled, refused, or error; with the last update only."""
    error: str | None
    usage: dict[str, int]


class Answers:
    """The answers to one request of HTTP while they come: one, or several choices."""

    def __init__(self, process: "EngineProcess") -> None:
        self._process = process
        self._updates: list[tuple[int, Update]] = []
        self._arrived = asyncio.Event()
        self.running: set[int] = set()
        """Identities of those that are not finished."""

    async def take(self) -> list[tuple[int, Update]]:
        """All that came since the last time, each with the number of its choice; waits for something."""
        while not self._updates:
            await self._arrived.wait()
            self._arrived.clear()
        found, self._updates = self._updates, []
        return found

    def put(self, choice: int, update: Update) -> None:
        """Called by the process."""
        self._updates.append((choice, update))
        self._arrived.set()

    def close(self) -> None:
        """Nobody waits for them any more."""
        for identity in list(self.running):
            self._process.cancel(identity)


@dataclass(slots=True)
class _Running:
    answers: Answers
    choice: int
    began: float
    first_token: float = 0.0


class EngineProcess:
    """
    Args:
        opening: the first message to the process.
        places: most requests at a time, those that wait included.
        command: what runs the worker.
    """

    def __init__(
        self, opening: dict[str, Any], places: int, metrics: Metrics, command: Sequence[str] = COMMAND
    ) -> None:
        self.places, self.metrics = places, metrics
        self.capacity = 0
        """Most tokens of a prompt and its answer together."""
        self.state = "starting"
        """starting, ready, draining, or failed."""
        self.statistics: dict[str, Any] = {}
        self.pid = 0
        self._opening, self._command = opening, command
        self._process: asyncio.subprocess.Process | None = None
        self._running: dict[int, _Running] = {}
        self._held = bytearray()
        """What came of the next message."""
        self._next = 0
        self._reserved = 0
        self._deaths: deque[float] = deque()
        self._ends: deque[float] = deque(maxlen=64)
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process and wait until it is ready; again is no harm.

        Raises:
            ConfigError: it cannot open the model, in its own words.
        """
        if self._watching is None:
            await self._open()
            self._watching = asyncio.create_task(self._watch(), name="engine")

    async def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        if self._process is not None:
            self._send({"do": "stop"})
            await self._wait_for_end()
        self.give_up("the server ends")

    def drain(self) -> None:
        """Take no more requests."""
        self.state = "draining"

    @property
    def taken(self) -> int:
        """Places that are taken."""
        return len(self._running) + self._reserved

    def check_room(self, count: int = 1) -> None:
        """
        Raises:
            RefusedError: the engine is not there, or has no place for so many requests now.
        """
        if self.state != "ready":
            words = {"draining": "the server is about to end", "failed": "the engine ended too often"}
            self.metrics.requests.labels("unavailable").inc()
            raise RefusedError(503, words.get(self.state, "the engine is being started"), retry_after=2)
        if count > self.places:
            raise RefusedError(400, f"{count} answers are asked for at once; at most {self.places} can be")
        if self.taken + count > self.places:
            self.metrics.requests.labels("busy").inc()
            raise RefusedError(
                429, f"{self.taken} requests are under way, and at most {self.places} may be; try again later",
                code="rate_limit_exceeded", retry_after=self._wait(count),
            )  # fmt: skip

    @contextlib.contextmanager
    def place(self, count: int) -> Iterator[None]:
        """Keep places while requests are made ready; they are given back at the end, when answers hold their own.

        Raises:
            RefusedError: as `check_room`.
        """
        self.check_room(count)
        self._reserved += count
        try:
            yield
        finally:
            self._reserved -= count

    def submit(self, requests: Sequence[dict[str, Any]]) -> Answers:
        """Hand the choices of a request to the engine, each with prompt, sampling, draft, marks."""
        answers = Answers(self)
        for choice, request in enumerate(requests):
            identity = self._next
            self._next += 1
            self._running[identity] = _Running(answers, choice, time.monotonic())
            answers.running.add(identity)
            self._send({"do": "submit", "id": identity, **request})
        self.metrics.places.set(len(self._running))
        return answers

    def cancel(self, identity: int) -> None:
        """Give up an answer; of one that is finished there is nothing to give up."""
        if identity in self._running:
            self._end(identity, "cancelled")
            self._send({"do": "cancel", "id": identity})

    async def _watch(self) -> None:
        """Pass updates on for as long as there is an engine."""
        while True:
            await self._listen()
            await self._bury()
            while self.state == "starting":
                try:
                    await self._open()
                except ConfigError:
                    await self._bury()
            if self.state != "ready":
                return

    async def _listen(self) -> None:
        while (message := await self._receive()) is not None:
            self._dispatch(message)

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "updates" in message:
            tokens = 0
            for update in message["updates"]:
                tokens += len(update["tokens"])
                self._pass_on(update)
            self.metrics.answer_tokens.inc(tokens)
        else:
            self.statistics = message["statistics"]
            self.metrics.on_statistics(self.statistics)

    async def _bury(self) -> None:
        """The process is gone: tell those who wait, and decide whether to start another."""
        if self.state == "ready":
            self.state = "starting"
        self.give_up(LOST)
        code = await self._wait_for_end()
        self.metrics.on_restart()
        now = time.monotonic()
        self._deaths.append(now)
        while self._deaths[0] < now - DEATHS_SECONDS:
            self._deaths.popleft()
        if self.state == "starting" and len(self._deaths) >= MOST_DEATHS:
            self.state = "failed"
        print(f"the engine ended with code {code}", file=sys.stderr, flush=True)

    async def _wait_for_end(self) -> int:
        """The process ends by itself, or is ended."""
        assert self._process is not None
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._process.wait()
        except TimeoutError:
            self._process.kill()
            return await self._process.wait()

    async def _open(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            process_group=0,
            limit=1 << 20,
        )
        self._held = bytearray()
        self._send(self._opening)
        first = await self._receive()
        if first is None or "ready" not in first:
            reason = "it ended before it was ready" if first is None else first["failed"]
            raise ConfigError(f"the engine cannot be started: {reason}")
        self.capacity, self.pid = first["ready"]["capacity"], first["ready"]["pid"]
        if self.state == "starting":
            self.state = "ready"

    def _pass_on(self, update: Update) -> None:
        running = self._running.get(update["id"])
        if running is None:  # given up while the update was on its way
            return
        if update["tokens"] and not running.first_token:
            running.first_token = time.monotonic()
        if update["finish"] is not None:
            self._end(update["id"], update["finish"], update["usage"])
        running.answers.put(running.choice, update)

    def _end(self, identity: int, outcome: str, usage: dict[str, int] | None = None) -> None:
        running, now = self._running.pop(identity), time.monotonic()
        running.answers.running.discard(identity)
        self._ends.append(now)
        metrics = self.metrics
        metrics.places.set(len(self._running))
        metrics.requests.labels(outcome).inc()
        metrics.duration.observe(now - running.began)
        if usage and running.first_token:
            metrics.prompt_tokens.inc(usage["prompt_tokens"])
            metrics.first_token.observe(running.first_token - running.began)
            if (further := usage["completion_tokens"] - 1) > 0:
                metrics.per_token.observe((now - running.first_token) / further)

    def give_up(self, reason: str) -> None:
        """End all answers under way with an error."""
        for identity in list(self._running):
            self._pass_on(
                Update(
                    id=identity,
                    pieces=[],
                    tokens=[],
                    logprobs=None,
                    prompt_logprobs=None,
                    finish="error",
                    error=reason,
                    usage={},
                )
            )

    def _wait(self, count: int) -> float:
        """Seconds until so many places will be free, at the pace of the latest ends."""
        if len(self._ends) < 2:
            return 5.0
        pace = (time.monotonic() - self._ends[0]) / len(self._ends)
        return min(60.0, pace * (self.taken + count - self.places))

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        data = json.dumps(message).encode("ascii")
        self._process.stdin.write(_HEADER.pack(len(data)) + data)

    async def _receive(self) -> dict[str, Any] | None:
        """The next message; None when the process is gone."""
        assert self._process is not None
        assert self._process.stdout is not None
        held = self._held
        while True:
            if len(held) >= _HEADER.size:
                end = _HEADER.size + _HEADER.unpack_from(held)[0]
                if len(held) >= end:
                    message: dict[str, Any] = json.loads(held[_HEADER.size : end])
                    del held[:end]
                    return message
            if not (data := await self._process.stdout.read(_CHUNK)):
                return None
            held += data
