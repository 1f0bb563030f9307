"""A process that speaks frames of JSON (see `data.template_worker`) by its standard input and output."""

import asyncio
import json
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, cast

from seqloom.data.template_worker import HEADER, frame

Message = dict[str, Any]

_read = json.JSONDecoder().raw_decode
_PATIENCE = 2.0  # seconds, for a process that was asked to end


class EnginePipe(asyncio.SubprocessProtocol):
    """Frames are read as they come, without a task between the pipe and whom they are for.

    Args:
        received: called with every message but the first.
    """

    def __init__(self, received: Callable[[Message], None]) -> None:
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[Message | None] = loop.create_future()
        """The first message; None if the process ended without one."""
        self.lost: asyncio.Future[None] = loop.create_future()
        """The process says no more."""
        self._ended: asyncio.Future[None] = loop.create_future()
        self._received = received
        self._held = bytearray()

    @classmethod
    async def open(cls, command: Sequence[str], received: Callable[[Message], None]) -> "EnginePipe":
        """Start a process; Ctrl-C is not meant for it."""
        _, pipe = await asyncio.get_running_loop().subprocess_exec(
            lambda: cls(received), *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None,
            start_new_session=True,
        )  # fmt: skip
        return pipe

    def send(self, message: Message) -> None:
        """To a process that is gone nothing is sent."""
        if not self._to_process.is_closing():
            self._to_process.write(frame(message))

    def kill(self) -> None:
        if not self._ended.done():
            self._process.kill()

    async def end(self) -> int | None:
        """Wait until the process has ended by itself, or end it; gives its code."""
        await asyncio.wait((self._ended,), timeout=_PATIENCE)
        self.kill()
        await self._ended
        code = self._process.get_returncode()
        self._process.close()
        return code

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._process = cast(asyncio.SubprocessTransport, transport)
        self._to_process = cast(asyncio.WriteTransport, self._process.get_pipe_transport(0))

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        held = self._held
        held += cast(bytes, data)
        place = 0
        while len(held) - place >= HEADER.size:
            begin = place + HEADER.size
            end = begin + HEADER.unpack_from(held, place)[0]
            if len(held) < end:
                break
            (message, _), place = _read(held[begin:end].decode("ascii")), end
            if self.first.done():
                self._received(message)
            else:
                self.first.set_result(message)
        del held[:place]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            for waited in (self.first, self.lost):
                if not waited.done():
                    waited.set_result(None)

    def process_exited(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


class Spare:
    """A process that is started before it is needed.

    Args:
        received: as for the pipe.
    """

    def __init__(self, command: Sequence[str], received: Callable[[Message], None]) -> None:
        self._command, self._received = command, received
        self.pipe: EnginePipe | None = None

    async def prepare(self, seconds: float) -> None:
        """Start one after so many seconds, if there is none."""
        await asyncio.sleep(seconds)
        if self.pipe is None:
            self.pipe = await EnginePipe.open(self._command, self._received)

    async def take(self) -> EnginePipe:
        """The one that waits, or else a new one."""
        pipe, self.pipe = self.pipe, None
        if pipe is not None and pipe.lost.done():
            await pipe.end()
            pipe = None
        return pipe or await EnginePipe.open(self._command, self._received)

    async def end(self) -> None:
        """End the one that waits."""
        if self.pipe is not None:
            self.pipe.kill()
            await self.pipe.end()
