"""A server that answers the chat page as the API does, without a model; what it answers is named by the last message.

think   thoughts, then Markdown of every kind       tool    a call of a tool, and a text once its result is there
slow    a word every 50 ms, without end             busy    429 with Retry-After
broken  an error event in the middle                cut     the connection ends in the middle
"""

import contextlib
import json
import re
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from seqloom.serve.http.page import HEADERS, page_files

ANSWER = """The **fused step** reads every weight *once*. <img src=x onerror="document.title='hit'">

## What it costs

| tokens | seconds | share |
|---|---:|---|
| 128 | 1.02 | 70 % |
| 2048 | 16.9 | 68 % |

1. Read the prompt in pieces
   - at most `512` tokens each
2. Draw a token for *every* row

> Same text, whatever stands beside it.

```python
def step(rows: list[Row]) -> None:
    for row in rows:
        row.feed(row.newest)  # a comment that is long enough that it has to scroll on a narrow screen
```

More in [the docs](https://example.org/docs) and [not here](javascript:alert(1)).
"""
THOUGHTS = "The user asks what a step costs. Weights dominate at batch 1.\n\nSo I compare bytes with bandwidth. "
CALL = {"name": "get_weather", "arguments": '{"city": "Łódź", "days": 3}'}


class Stub(BaseHTTPRequestHandler):
    """One request."""

    server: "StubServer"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        files = page_files()
        if self.path in files:
            kind, content = files[self.path]
            self._send(200, kind, content, HEADERS)
        elif self._refused():
            pass
        elif self.path == "/v1/models":
            found = {"id": "hybrid-150m", "object": "model", "chat": self.server.chat, "thinking": self.server.chat}
            self._send_json(200, {"object": "list", "data": [found]})
        else:
            self._send_json(404, {"error": {"message": f"{self.path}: not found"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused():
            return
        self.server.bodies.append(body)
        if "prompt" in body:
            self._go_on()
            return
        said = body["messages"][-1]["content"]
        if said == "busy":
            self._send_json(429, {"error": {"message": "the queue is full"}}, {"Retry-After": "3"})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            self._stream(body, said)
        except (BrokenPipeError, ConnectionResetError):
            self.server.stopped += 1

    def _go_on(self) -> None:
        """What a base model does."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for word in ("# and ", "so ", "on"):
            self._event({"choices": [{"index": 0, "text": word, "finish_reason": None}]})
        self._event({"choices": [], "usage": _usage(3, 0)})
        self.wfile.write(b"data: [DONE]\n\n")

    def _stream(self, body: dict[str, Any], said: str) -> None:
        count = reasoning = 0
        finish = "stop"
        budget = body.get("thinking_tokens")

        def chunk(**delta: Any) -> None:
            nonlocal count
            count += 1
            self._event({"choices": [{"index": 0, "delta": delta}], "usage": _usage(count, reasoning)})

        if said == "think" and budget != 0:
            for word in _words(THOUGHTS * 2)[:budget]:
                reasoning += 1
                chunk(reasoning_content=word)
        if said == "slow":
            while True:
                chunk(content=f"word{count} ")
                time.sleep(0.05)
        if said == "tool":
            finish = "tool_calls"
            head = {"index": 0, "id": "call_1", "type": "function", "function": {"name": CALL["name"], "arguments": ""}}
            chunk(tool_calls=[head])
            for place in range(0, len(CALL["arguments"]), 5):
                piece = {"arguments": CALL["arguments"][place : place + 5]}
                chunk(tool_calls=[{"index": 0, "function": piece}])
        else:
            text = f"It says {said}." if body["messages"][-1]["role"] == "tool" else ANSWER
            for place, word in enumerate(_words(text)):
                if place == 9 and said == "broken":
                    self._event({"error": {"message": "the engine has ended and is being started again"}})
                    return
                if place == 9 and said == "cut":
                    return
                chunk(content=word)
                time.sleep(self.server.pause)
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        self._event({"choices": [], "usage": _usage(count, reasoning)})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, value: object) -> None:
        # Two writes, the cut in the middle of a character where there is one.
        data = f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()
        cut = next((place for place, byte in enumerate(data) if byte >= 0x80), len(data) // 2) + 1
        for part in (data[:cut], data[cut:]):
            self.wfile.write(part)
            self.wfile.flush()

    def _refused(self) -> bool:
        wanted = self.server.key
        if wanted is None or self.headers.get("Authorization") == f"Bearer {wanted}":
            return False
        self._send_json(401, {"error": {"message": "a key is needed"}})
        return True

    def _send_json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        self._send(status, "application/json", json.dumps(value).encode(), headers or {})

    def _send(self, status: int, kind: str, content: bytes, headers: Any) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


class StubServer(ThreadingHTTPServer):
    """
    Attributes:
        key: what clients must send, if anything.
        chat: whether the model has a chat template.
        pause: seconds between tokens.
        bodies: the requests for answers, in order.
        stopped: answers that the client left.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Stub)
        self.key: str | None = None
        self.chat = True
        self.pause = 0.0
        self.bodies: list[dict[str, Any]] = []
        self.stopped = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


@contextlib.contextmanager
def serving() -> Iterator[StubServer]:
    with StubServer() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def _words(text: str) -> list[str]:
    return re.findall(r"\S+ ?|\s+", text)


def _usage(tokens: int, reasoning: int) -> dict[str, Any]:
    return {
        "prompt_tokens": 130,
        "completion_tokens": tokens,
        "prompt_tokens_details": {"cached_tokens": 65},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "accepted_prediction_tokens": 3 * tokens,
            "rejected_prediction_tokens": tokens,
        },
    }
