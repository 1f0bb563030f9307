"""Sends an answer while it comes, and gives it up when the client is gone.

What is sent is up to a writer: a stream of events writes something for every update, a whole answer only at the end.
The status is decided with the first update, so a request that the engine refuses is still answered by an error.
What came in one turn of the engine goes out in one piece.
"""

import asyncio
from typing import Protocol

from seqloom.serve.http.errors import RefusedError
from seqloom.serve.http.guard import Receive, Send, respond
from seqloom.serve.http.updates import Answers, Update

_HEADERS = {
    kind: [(b"content-type", text), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
    for kind, text in (
        ("application/json", b"application/json"),
        ("text/event-stream", b"text/event-stream; charset=utf-8"),
    )
}


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


async def send_answer(answers: Answers, writer: Writer, receive: Receive, send: Send) -> None:
    """
    Args:
        answers: what the engine gives; closed at the end in any case.
    """
    watching = asyncio.create_task(_watch(receive, answers))
    try:
        await _send_all(answers, writer, send)
    finally:
        answers.close()
        watching.cancel()


async def _send_all(answers: Answers, writer: Writer, send: Send) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": _HEADERS[writer.media_type]}
    begun = False
    try:
        while not writer.done:
            if not (updates := await answers.take()):
                return
            data = b"".join([writer.feed(choice, update) for choice, update in updates])
            if data:
                if not begun:
                    await send(start)
                    begun = True
                await send({"type": "http.response.body", "body": data, "more_body": True})
        data = writer.end()
    except RefusedError as error:
        if not begun:
            await respond(send, error.status, error.body, error.headers)
            return
        data = writer.failed(error)
    if not begun:
        start["headers"] = [*_HEADERS[writer.media_type], (b"content-length", str(len(data)).encode())]
        await send(start)
    await send({"type": "http.response.body", "body": data, "more_body": False})


async def _watch(receive: Receive, answers: Answers) -> None:
    """Once the body is read, all that can still come is the news that the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    answers.leave()
