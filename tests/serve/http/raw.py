"""HTTP by hand, for clients that no library would let one be."""

import json
import socket
import struct
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A connection that is kept open."""

    def __init__(self, address: str, timeout: float = 20.0) -> None:
        parts = urlsplit(address)
        assert parts.hostname is not None
        self.socket = socket.create_connection((parts.hostname, parts.port or 80), timeout)
        self._read = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, method: str, path: str, body: bytes = b"", headers: tuple[str, ...] = ()) -> Answer:
        """A whole request, and the answer to it."""
        self.send(request(method, path, body, headers))
        return self.answer()

    def answer(self) -> Answer:
        """The next answer to the end; ConnectionError if there is none."""
        status, headers = self.head()
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, b"".join(self.chunks()))
        length = headers.get("content-length")
        return Answer(status, headers, self._read.read() if length is None else self._read.read(int(length)))

    def head(self) -> tuple[int, dict[str, str]]:
        first = self._read.readline()
        if not first:
            raise ConnectionError("closed without an answer")
        found: dict[str, str] = {}
        while (line := self._read.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            found[name.lower()] = value.strip()
        return int(first.split()[1]), found

    def chunks(self) -> Any:
        """Pieces of a body of unknown length as they come."""
        while size := int(self._read.readline() or b"0", 16):
            yield self._read.read(size)
            self._read.readline()
        self._read.readline()

    def closed(self) -> bool:
        """Whether the other side ends the connection before the timeout; what it still says is thrown away."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        return True

    def abort(self) -> None:
        """Go away without a word: a reset in place of a farewell."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self._read.close()
        self.socket.close()

    def __del__(self) -> None:
        if hasattr(self, "socket"):
            self.close()


def request(method: str, path: str, body: bytes = b"", headers: tuple[str, ...] = ()) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def chat(text: str, **fields: Any) -> bytes:
    """The body of a request for a chat's next message."""
    return json.dumps({"messages": [{"role": "user", "content": text}], **fields}).encode()


def events(body: bytes) -> list[Any]:
    """The data of a stream's events, the last of which is [DONE] where all went well."""
    found = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in found]
