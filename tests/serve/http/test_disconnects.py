"""Clients that go away at any moment leave nothing behind: their rows and pages return exactly, and others read on."""

import contextlib
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from serve.http.front import serving, write_tokenizer
from serve.http.raw import Wire, chat, events, request

from soak import soak

COUNT = soak(100, 20_000)


def leave(address: str, draw: random.Random) -> None:
    """Begin a request, and be gone before it is answered."""
    wire = Wire(address)
    whole = request(
        "POST", "/v1/chat/completions", chat("COUNT{500}", stream=draw.random() < 0.7, n=draw.choice((1, 1, 3)))
    )
    wire.send(whole if draw.random() < 0.8 else whole[: draw.randrange(1, len(whole))])
    if draw.random() < 0.6:
        time.sleep(draw.random() * 0.02)
    if draw.random() < 0.4:
        wire.socket.settimeout(0.02)
        with contextlib.suppress(TimeoutError):
            wire.socket.recv(draw.choice((1, 100, 4000)))
    (wire.abort if draw.random() < 0.5 else wire.close)()


@pytest.mark.full
@pytest.mark.timeout(soak(120, 3600))
def test_disconnects(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "model")
    with serving(folder, places=48, rows=8, turn_seconds=0.001) as server:
        before = wait_until_idle(server)
        texts: list[str] = []
        ended = threading.Event()

        def neighbour() -> None:
            wire = Wire(server.address)
            while not ended.is_set():
                told = wire.ask("POST", "/v1/chat/completions", chat("COUNT{40}", stream=True))
                if told.status == 200:
                    data = events(told.body)
                    assert data[-1] == "[DONE]"
                    texts.append("".join(one["choices"][0]["delta"].get("content") or "" for one in data[:-1]))
            wire.close()

        thread = threading.Thread(target=neighbour)
        thread.start()
        draw = random.Random(3)
        for _ in range(COUNT):
            leave(server.address, draw)
        ended.set()
        thread.join()
        assert wait_until_idle(server) == before
        assert set(texts) == {" ".join(map(str, range(1, 41)))}


def wait_until_idle(server: Any) -> dict[str, int]:
    """What the engine holds when nobody is served any more, by its own word."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        told = server.engine.statistics
        if not server.engine.taken and told and not told["rows_running"] + told["rows_waiting"]:
            time.sleep(0.6)  # statistics come twice a second
            held = ("rows_running", "rows_waiting", "pages_free")
            return {name: server.engine.statistics[name] for name in held}
        time.sleep(0.05)
    raise AssertionError(f"still held: {server.engine.taken}, {server.engine.statistics}")
