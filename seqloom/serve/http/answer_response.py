"""Sends an answer while it comes, and gives it up when the client is gone.

What is sent is up to a writer: a stream of events writes something for every update, a whole answer only at the end.
The status is decided with the first update, so a request that the engine refuses is still answered by an error.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from starlette.responses import JSONResponse, Response

from seqloom.serve.http.engine_process import Answers, Update
from seqloom.serve.http.errors import RefusedError
from seqloom.serve.http.guard import Message, Receive, Send


class Writer(Protocol):
    """Turns updates into bytes of a body."""

    media_type: str

    @property
    def done(self) -> bool:
        """Whether all that was asked for has come."""
        ...

    def feed(self, choice: int, update: Update) -> bytes:
        """
        Raises:
            RefusedError: the request failed.
        """
        ...

    def end(self) -> bytes:
        """The rest, once all has come."""
        ...

    def failed(self, error: RefusedError) -> bytes:
        """The rest, when something was sent already and no more can come."""
        ...


class AnswerResponse(Response):
    """
    Args:
        answers: what the engine gives; closed at the end in any case.
    """

    def __init__(self, answers: Answers, writer: Writer) -> None:
        self._answers, self._writer = answers, writer
        self.status_code = 200
        self.background = None
        self.media_type = writer.media_type
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send_all(scope, receive, send))
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._answers.close()
            gone.cancel()
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending

    async def _send_all(self, scope: Message, receive: Receive, send: Send) -> None:
        writer, began = self._writer, False
        start: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            while not writer.done:
                updates = await self._answers.take()
                data = b"".join([writer.feed(choice, update) for choice, update in updates])
                if data:
                    if not began:
                        await send(start)
                        began = True
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            data = writer.end()
        except RefusedError as error:
            if not began:
                await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
                return
            data = writer.failed(error)
        if not began:
            start["headers"] = [*self.raw_headers, (b"content-length", str(len(data)).encode())]
            await send(start)
        await send({"type": "http.response.body", "body": data, "more_body": False})


async def _until_gone(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
