"""The engine's process as the server sees it: started, watched, started again; requests go in, updates come out.

When the engine dies, or says nothing for too long, the answers under way end with an error, and a new process is
started, unless too many died in a row. Most of a start is loading modules, so behind an engine that has lived for some
seconds a process waits that has done so, and takes over at once. See `serve.worker` for the messages.
"""

import asyncio
import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from seqloom.core.errors import ConfigError
from seqloom.serve.http.engine_pipe import EnginePipe, Spare
from seqloom.serve.http.errors import RefusedError
from seqloom.serve.http.metrics import End, Metrics
from seqloom.serve.http.room import Room
from seqloom.serve.http.updates import Answers, Update

COMMAND = (sys.executable, "-P", "-m", "seqloom.serve.worker")
MOST_DEATHS = 5
"""In `DEATHS_SECONDS`; after that the engine stays dead, and `/ready` says so."""
DEATHS_SECONDS = 60.0
SPARE_SECONDS = 10.0
"""An engine that has lived so long gets a spare process: one that ends at once would end again."""
LOST = "the engine ended while it answered; it is started again"

_LOOKS = 4
"""In `hang_seconds`. Each must find silence, so that a server which was stopped itself takes nobody for dead."""
_REASONS = {"draining": "the server is about to end", "failed": "the engine ended too often"}


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
        hang_seconds: an engine that says nothing for so long is taken for dead; it speaks twice a second or, if a turn
            takes longer, after every turn.
    """

    def __init__(
        self, opening: dict[str, Any], places: int, metrics: Metrics, command: Sequence[str] = COMMAND,
        hang_seconds: float = 300.0,
    ) -> None:  # fmt: skip
        self.metrics = metrics
        self.capacity = 0
        """Most tokens of a prompt and its answer together."""
        self.state = "starting"
        """starting, ready, draining, or failed."""
        self.statistics: dict[str, Any] = {}
        self.pid = 0
        self._opening, self._hang_seconds = opening, hang_seconds
        self._room = Room(places)
        metrics.places.set_function(lambda: self.taken)
        self._pipe: EnginePipe | None = None
        self._spare = Spare(command, self._dispatch)
        self._heard = True
        self._running: dict[int, _Running] = {}
        self._next = 0
        self._deaths: deque[float] = deque()
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
        if self._pipe is not None:
            self._pipe.send({"do": "stop"})
            await self._pipe.end()
        await self._spare.end()
        self.give_up("the server ends")

    def drain(self) -> None:
        """Take no more requests."""
        self.state = "draining"

    @property
    def taken(self) -> int:
        """Places that are taken."""
        return self._room.taken

    def check_room(self, count: int = 1) -> None:
        """
        Raises:
            RefusedError: the engine is not there, or has no place for so many requests now.
        """
        if self.state != "ready":
            self.metrics.requests.labels("unavailable").inc()
            raise RefusedError(503, _REASONS.get(self.state, "the engine is being started"), retry_after=2)
        try:
            self._room.check(count)
        except RefusedError as error:
            if error.status == 429:
                self.metrics.requests.labels("busy").inc()
            raise

    @contextlib.contextmanager
    def place(self, count: int) -> Iterator[None]:
        """Keep places while requests are made ready.

        Raises:
            RefusedError: as `check_room`.
        """
        self.check_room(count)
        with self._room.keep(count):
            yield

    def submit(self, requests: Sequence[dict[str, Any]]) -> Answers:
        """Hand the choices of a request to the engine, each with prompt, sampling, draft, marks, progress."""
        answers, now = Answers(self.cancel), time.monotonic()
        for choice, request in enumerate(requests):
            identity = self._next
            self._next += 1
            self._running[identity] = _Running(answers, choice, now)
            self._room.taken += 1
            answers.running.add(identity)
            self._send({"do": "submit", "id": identity, **request})
        return answers

    def cancel(self, identity: int) -> None:
        """Give up an answer; of one that is finished there is nothing to give up."""
        if identity in self._running:
            self._end(identity, "cancelled")
            self._send({"do": "cancel", "id": identity})

    def give_up(self, reason: str) -> None:
        """End all answers under way with an error."""
        for identity in list(self._running):
            self._pass_on(Update(id=identity, pieces=[], tokens=[], finish="error", error=reason))

    async def _watch(self) -> None:
        """Pass on what the engine says for as long as there is one."""
        while True:
            preparing = asyncio.create_task(self._spare.prepare(SPARE_SECONDS), name="spare engine")
            try:
                await self._until_lost()
            finally:
                preparing.cancel()
            await self._bury()
            while self.state == "starting":
                try:
                    await self._open()
                except ConfigError:
                    await self._bury()
            if self.state != "ready":
                return

    async def _until_lost(self) -> None:
        """Wait for the end of the engine; one that hangs is ended."""
        assert self._pipe is not None
        pipe, silent = self._pipe, 0
        while not pipe.lost.done():
            self._heard = False
            await asyncio.wait((pipe.lost,), timeout=self._hang_seconds / _LOOKS)
            silent = 0 if self._heard else silent + 1
            if silent == _LOOKS:
                print(f"the engine was silent for {self._hang_seconds:g} s and is ended", file=sys.stderr, flush=True)
                pipe.kill()

    def _dispatch(self, message: dict[str, Any]) -> None:
        self._heard = True
        if "updates" in message:
            for update in message["updates"]:
                self.metrics.tokens += len(update["tokens"])
                self._pass_on(update)
        else:
            self.statistics = message["statistics"]
            self.metrics.on_statistics(self.statistics)

    async def _bury(self) -> None:
        """The process is gone: tell those who wait, and decide whether to start another."""
        if self.state == "ready":
            self.state = "starting"
        self.give_up(LOST)
        assert self._pipe is not None
        code = await self._pipe.end()
        self.metrics.on_restart()
        now = time.monotonic()
        self._deaths.append(now)
        while self._deaths[0] < now - DEATHS_SECONDS:
            self._deaths.popleft()
        if self.state == "starting" and len(self._deaths) >= MOST_DEATHS:
            self.state = "failed"
        print(f"the engine ended with code {code}", file=sys.stderr, flush=True)

    async def _open(self) -> None:
        self._pipe = pipe = await self._spare.take()
        pipe.send(self._opening)
        first = await pipe.first
        if first is None or "ready" not in first:
            await pipe.end()
            reason = "it ended before it was ready" if first is None else first["failed"]
            raise ConfigError(f"the engine cannot be started: {reason}")
        self.capacity, self.pid = first["ready"]["capacity"], first["ready"]["pid"]
        if self.state == "starting":
            self.state = "ready"

    def _pass_on(self, update: Update) -> None:
        running = self._running.get(update["id"])
        if running is None:  # given up while the update was on its way
            return
        if not running.first_token and update["tokens"]:
            running.first_token = time.monotonic()
        if (finish := update.get("finish")) is not None:
            self._end(update["id"], finish, update.get("usage"))
        running.answers.put(running.choice, update)

    def _end(self, identity: int, outcome: str, usage: dict[str, int] | None = None) -> None:
        running, now = self._running.pop(identity), time.monotonic()
        running.answers.running.discard(identity)
        self._room.leave()
        first = running.first_token - running.began if running.first_token else None
        self.metrics.on_end(End(outcome, now - running.began, first, usage))

    def _send(self, message: dict[str, Any]) -> None:
        assert self._pipe is not None
        self._pipe.send(message)
