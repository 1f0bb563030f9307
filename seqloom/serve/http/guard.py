"""What stands in front of a server: the key, the names it answers to, and clients that take or give too slowly.

Without a key a server answers to names of this machine alone and to no page of another origin, so nothing in a browser
reaches it through a name of its own. With one, every path but a watchdog's asks for it. A body may be neither longer
nor slower than allowed; a connection that sends no request, or takes no answer, is closed. Every answer has an
`x-request-id`: the client's own if it sent one, so that both sides' notes can be laid together.
"""

import asyncio
import hmac
import itertools
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from seqloom.core.errors import ConfigError

OPEN_PATHS = ("/health", "/ready")
"""What a watchdog may see without the key."""
LOCAL_NAMES = (b"localhost", b"127.0.0.1", b"[::1]", b"testserver")
SLOWEST = 1024
"""Bytes a second of a body, after the first `idle_seconds`."""

_NO_HEADERS: Mapping[str, str] = {}
_NAME = re.compile(rb"[!-~]{1,512}")
"""Of a request; what OpenAI's API takes."""
_PROCESS, _REQUESTS = secrets.token_hex(8).encode(), itertools.count()

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """In front of an application: the key, names, origins, and bodies neither longer nor slower than allowed.

    Args:
        open_paths: what needs no key.
    """

    def __init__(
        self,
        app: Any,
        *,
        key: str | None,
        max_body_bytes: int,
        idle_seconds: float,
        open_paths: Collection[str] = OPEN_PATHS,
    ) -> None:
        self._app, self._most, self._idle = app, max_body_bytes, idle_seconds
        self._open = frozenset(open_paths)
        self._wanted = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        send = _named(send, headers)
        given, size = headers.get(b"authorization", b""), headers.get(b"content-length", b"0")
        if self._wanted and scope["path"] not in self._open and not hmac.compare_digest(given, self._wanted):
            await _refuse(scope, send, 401, "a key is needed: Authorization: Bearer KEY")
        elif self._wanted is None and _name(headers.get(b"host", b"")) not in LOCAL_NAMES:
            await _refuse(scope, send, 400, "without a key, only names of this machine are answered")
        elif self._wanted is None and not _is_local(headers.get(b"origin")):
            await _refuse(scope, send, 403, "pages of other origins need a server with a key")
        elif scope["type"] == "websocket":
            await self._app(scope, receive, send)
        elif size.isdigit() and int(size[:20]) > self._most:
            await _refuse(scope, send, 413, f"the body is longer than {self._most:,} bytes")
        else:
            if scope["method"] == "HEAD":  # as probes and proxies ask; what sends the answer leaves its body out
                scope = {**scope, "method": "GET"}
            await self._app(scope, self._bounded(receive), send)

    def _bounded(self, receive: Receive) -> Receive:
        from starlette.exceptions import HTTPException

        read, whole, until = 0, False, time.monotonic() + self._idle

        async def bounded() -> Message:
            nonlocal read, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout(until + read / SLOWEST - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the body does not come") from None
            read += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if read > self._most:
                raise HTTPException(413, f"the body is longer than {self._most:,} bytes")
            return message

        return bounded


def guard(app: Any, key: str | None, **limits: Any) -> None:
    """Put the guard in front of a FastAPI application."""
    app.add_middleware(Guard, key=key, **limits)


def patient(protocol: type[Any], idle_seconds: float) -> type[Any]:
    """A protocol of uvicorn that closes connections whose request does not come or whose answer is not taken."""

    class Patient(protocol):  # type: ignore[misc]
        _request_due: asyncio.TimerHandle | None = None
        _taking_due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._expect_request()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._expect_request()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._request_due, self._taking_due):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._taking_due = self.loop.call_later(idle_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._taking_due is not None:
                self._taking_due.cancel()

        def send_400_response(self, msg: str) -> None:
            """What is no HTTP gets an error like any other."""
            body = json.dumps(error_body(400, msg)).encode()
            head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
            self.transport.close()

        def _expect_request(self) -> None:
            """Bytes that are no whole request yet must become one in time; a WebSocket has left this protocol."""
            waits = self in self.connections and (self.cycle is None or self.cycle.response_complete)
            if waits and self._request_due is None:
                self._request_due = self.loop.call_later(idle_seconds, self._give_up)
            elif not waits and self._request_due is not None:
                self._request_due.cancel()
                self._request_due = None

        def _give_up(self) -> None:
            self._request_due = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.abort()

    return Patient


def listen(host: str, port: int) -> Any:
    """A listening socket.

    Raises:
        ConfigError: the address cannot be had.
    """
    import socket

    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=256)
        # Without this a small answer waits 40 ms for an acknowledgement; what is accepted takes it over.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host {host} --port {port}: cannot be had: {error}") from None


def address(host: str, listening: Any) -> str:
    """Where a listening socket is reached."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}"


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in the shape of OpenAI's API."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code or status}}


async def respond(send: Send, status: int, body: dict[str, Any], headers: Mapping[str, str] = _NO_HEADERS) -> None:
    """Answer a request by a JSON object."""
    data = json.dumps(body).encode()
    shown = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    shown += [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": shown})
    await send({"type": "http.response.body", "body": data})


def _named(send: Send, headers: Mapping[bytes, bytes]) -> Send:
    """What sends an answer with the name of its request."""
    given = headers.get(b"x-client-request-id") or headers.get(b"x-request-id") or b""
    name = given if _NAME.fullmatch(given) else b"req_%s%x" % (_PROCESS, next(_REQUESTS))

    def sending(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-request-id", name)]
        return send(message)

    return sending


async def _refuse(scope: Message, send: Send, status: int, message: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": message})
        return
    await respond(send, status, error_body(status, message), {"www-authenticate": "Bearer"} if status == 401 else {})


def _name(host: bytes) -> bytes:
    """A host without its port."""
    name, colon, port = host.lower().rpartition(b":")
    return name if colon and (port.isdigit() or not port) else host.lower()


def _is_local(origin: bytes | None) -> bool:
    """Whether a request comes from no page, or from one of this machine."""
    if origin is None:
        return True
    try:
        name = urlsplit(origin.decode("latin-1")).hostname
    except ValueError:
        return False
    return name in ("localhost", "127.0.0.1", "::1")
